# The serving engine, one optimization after another: the ladder of the chosen model.
LADDER = SETTINGS.values["ladder"]
LADDERS = [] if LADDER["model"] == "none" else ["ladder"]


rule ladder:
    input:
        code=code_of("scripts/inference_optimizations_blackwell.py"),
        model_record=rules.prepare_model.output.record,
        text=rules.prepare_text.output.text,
    output:
        report(
            f"{RESULTS}/engine/ladder.json",
            caption="captions/ladder.rst",
            category="Engine",
            labels={"machine": "{hardware}", "shows": "ladder"},
        ),
    log:
        f"{RESULTS}/logs/ladder.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("ladder"),
    params:
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        threads=cpus_of,
        model=served_model(LADDER["model"]),
    shell:
        "OMP_WAIT_POLICY=passive {params.python:q} scripts/inference_optimizations_blackwell.py --key {wildcards.hardware:q}"
        " --model {params.model:q} --text {input.text:q} --threads {params.threads} --out {output:q} --log {log:q}"
        " > {log:q}.txt"
