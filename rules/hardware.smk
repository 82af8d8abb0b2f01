# What this machine is, and its measured ceilings.


rule hardware:
    input:
        code=code_of("scripts/hardware.py"),
    output:
        f"{RESULTS}/hardware.json",
    log:
        f"{RESULTS}/logs/hardware.log",
    params:
        key=HARDWARE,
        threads=THREADS,
    threads: THREADS
    conda:
        ENVIRONMENT
    shell:
        "{PYTHON:q} scripts/hardware.py --key {params.key:q} --threads {params.threads}"
        " --out {output:q} --log {log:q}"
