# What this machine is, and its measured ceilings.


rule hardware:
    input:
        code=code_of("scripts/hardware.py"),
    output:
        f"{RESULTS}/hardware.json",
    log:
        f"{RESULTS}/logs/hardware.log",
    conda:
        ENVIRONMENT
    threads: THREADS
    params:
        key=HARDWARE,
        environment=ENVIRONMENT_VERSIONS,
        threads=THREADS,
    shell:
        "python3 scripts/hardware.py --key {params.key:q} --threads {params.threads}"
        " --out {output:q} --log {log:q}"
