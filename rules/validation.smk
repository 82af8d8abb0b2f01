# Several ranks: what must hold between them, what their links carry, hand-over of caches, experts over ranks.
# A GPU a rank; where there is one GPU, or none, what needs two ranks runs on the CPU over gloo.
VALIDATIONS = [] if VALIDATION["ranks"] == "none" else list(VALIDATED)


rule validate_ranks:
    input:
        code=lambda wildcards: code_of(
            f"scripts/{wildcards.validation}.py", "scripts/start_ranks.py"
        ),
    output:
        report(
            f"{RESULTS}/ranks/{{validation}}.json",
            caption="captions/validate_ranks.rst",
            category="Several ranks",
            labels={"machine": "{hardware}", "shows": "{validation}"},
        ),
    log:
        f"{RESULTS}/logs/validate_{{validation}}.log",
    conda:
        environment_of
    # every GPU, or every core: nothing else is timed beside it
    threads: cpus_of
    resources:
        **REQUESTS.resources("validate_ranks", VALIDATION["nodes"]),
    params:
        srun=srun_over(VALIDATION["nodes"]),
        nodes=VALIDATION["nodes"],
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        threads=cpus_of,
        ranks=ranks_for,
        more=options_for,
    shell:
        "{params.srun} {params.python:q} scripts/start_ranks.py --nodes {params.nodes} --ranks {params.ranks}"
        " scripts/{wildcards.validation}.py"
        " --key {wildcards.hardware:q} --threads {params.threads} {params.more} --judged-later"
        " --out {output:q} --log {log:q}"
