# The engine over every GPU of a machine, or of several nodes of a cluster.
DISTRIBUTED = SETTINGS.values["distributed"]
RANKED = HARDWARE if DISTRIBUTED["model"] != "none" else []


rule inference_serving_multigpu:
    input:
        code=code_of("scripts/inference_serving_multigpu.py", "scripts/start_ranks.py"),
        hardware=rules.hardware.output[0],
        model=[] if DISTRIBUTED["model"] == "none" else [DISTRIBUTED["model"]],
    output:
        report(
            f"{RESULTS}/tensor_parallel.json",
            caption="captions/inference_serving_multigpu.rst",
            category="Several ranks",
            labels={"machine": "{hardware}", "shows": "engine, tensor parallel"},
        ),
    log:
        f"{RESULTS}/logs/inference_serving_multigpu.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("inference_serving_multigpu", DISTRIBUTED["nodes"]),
    params:
        environment=ENVIRONMENT_VERSIONS,
        srun=srun_over(DISTRIBUTED["nodes"]),
        nodes=DISTRIBUTED["nodes"],
        ranks=ranks_of,
        python=python_of,
        threads=cpus_of,
    shell:
        "{params.srun} {params.python:q} scripts/start_ranks.py --nodes {params.nodes} --ranks {params.ranks}"
        " scripts/inference_serving_multigpu.py --key {wildcards.hardware:q} --model {input.model:q}"
        " --threads {params.threads} --check --out {output:q} --log {log:q}"
