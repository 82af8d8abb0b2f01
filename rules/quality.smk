# What a precision costs: perplexity of real weights on real text.
PERPLEXITY = SETTINGS.values["perplexity"]
MODEL = "results/inputs/model"
TEXT = "results/inputs/text.txt"


rule prepare_model:
    input:
        code=code_of("scripts/prepare_model.py"),
        source=source_files(SETTINGS.values["model"]),
    output:
        f"{MODEL}/config.json",
        f"{MODEL}/tokenizer.json",
        f"{MODEL}/model.safetensors",
        record=f"{MODEL}/model.json",
    log:
        "results/inputs/logs/prepare_model.log",
    params:
        source=SETTINGS.values["model"],
        folder=MODEL,
    conda:
        ENVIRONMENT
    shell:
        "{PYTHON:q} scripts/prepare_model.py --source {params.source:q} --out {params.folder:q}"
        " --log {log:q}"


rule prepare_text:
    input:
        code=code_of("scripts/prepare_text.py"),
        source=source_files(SETTINGS.values["text"]),
    output:
        text=TEXT,
        record="results/inputs/text.json",
    log:
        "results/inputs/logs/prepare_text.log",
    params:
        source=SETTINGS.values["text"],
    conda:
        ENVIRONMENT
    shell:
        "{PYTHON:q} scripts/prepare_text.py --source {params.source:q} --out-text {output.text:q}"
        " --out-record {output.record:q} --log {log:q}"


rule perplexity_eval:
    input:
        rules.prepare_model.output,
        code=code_of("scripts/perplexity_eval.py"),
        text=rules.prepare_text.output.text,
        text_record=rules.prepare_text.output.record,
    output:
        record=f"{RESULTS}/perplexity.json",
        samples=f"{RESULTS}/perplexity.parquet",
    log:
        f"{RESULTS}/logs/perplexity_eval.log",
    params:
        model=MODEL,
        key=HARDWARE,
        threads=THREADS,
        **PERPLEXITY,
    threads: THREADS
    conda:
        ENVIRONMENT
    shell:
        "{PYTHON:q} scripts/perplexity_eval.py --model {params.model:q} --text {input.text:q}"
        " --text-record {input.text_record:q} --key {params.key:q}"
        " --precisions {params.precisions:q} --window-tokens {params.window_tokens}"
        " --stride-tokens {params.stride_tokens} --tokens {params.tokens}"
        " --threads {params.threads} --out-record {output.record:q}"
        " --out-samples {output.samples:q} --log {log:q}"
