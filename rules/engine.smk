# The serving engine, one optimization after another: the ladder of the chosen model.
LADDER = SETTINGS.values["ladder"]
LADDERS = [] if LADDER["model"] == "none" else ["ladder"]


rule ladder:
    input:
        code=code_of("scripts/inference_optimizations_blackwell.py"),
        model_record=rules.prepare_model.output.record,
        text=rules.prepare_text.output.text,
    output:
        f"{RESULTS}/engine/ladder.json",
    log:
        f"{RESULTS}/logs/ladder.log",
    conda:
        ENVIRONMENT
    threads: THREADS
    params:
        key=HARDWARE,
        environment=ENVIRONMENT_VERSIONS,
        threads=THREADS,
        # auto: real weights where a minute is enough for them, on a GPU a shape that fills it
        model=lambda wildcards, input: (
            LADDER["model"]
            if LADDER["model"] != "auto"
            else os.path.dirname(input.model_record) if DEVICE == "cpu" else "llama-1b"
        ),
    shell:
        "OMP_WAIT_POLICY=passive python3 scripts/inference_optimizations_blackwell.py --key {params.key:q}"
        " --model {params.model:q} --text {input.text:q} --threads {params.threads} --out {output:q} --log {log:q}"
        " > {log:q}.txt"
