"""The command line `aisp`: one program over the same DAG that `snakemake` runs."""
