# serveproof: which LLM-serving optimizations pay on this machine. docs/architecture.md draws the DAG.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/hardware.smk"
include: "rules/pairs.smk"
include: "rules/quality.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        "reports/index.html",


localrules:
    all,
