# What this machine is, and its measured ceilings.


rule hardware:
    input:
        code=code_of("scripts/hardware.py"),
    output:
        report(
            f"{RESULTS}/hardware.json",
            caption="captions/hardware.rst",
            category="Machine",
            labels={"machine": "{hardware}", "shows": "what it is, its ceilings"},
        ),
    log:
        f"{RESULTS}/logs/hardware.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("hardware"),
    params:
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        threads=cpus_of,
    shell:
        "{params.python:q} scripts/hardware.py --key {wildcards.hardware:q} --threads {params.threads}"
        " --out {output:q} --log {log:q}"
