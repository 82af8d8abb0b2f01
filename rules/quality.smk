# What a precision costs: perplexity of real weights on real text.
PERPLEXITY = SETTINGS.values["perplexity"]
# tokens beside the scored ones are kept for those
CALIBRATES = any(name in settings_of.CALIBRATED for name in PERPLEXITY["precisions"])
MODEL = "results/inputs/model"
TEXT = "results/inputs/text.txt"
HOME_PYTHON = home(MACHINES).python


rule prepare_model:
    input:
        code=code_of("scripts/prepare_model.py"),
        source=source_files(SETTINGS.values["model"]),
    output:
        f"{MODEL}/config.json",
        f"{MODEL}/tokenizer.json",
        record=f"{MODEL}/model.json",
    log:
        "results/inputs/logs/prepare_model.log",
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("prepare_model"),
    params:
        python=HOME_PYTHON,
        source=SETTINGS.values["model"],
        folder=lambda wildcards, output: os.path.dirname(output.record),
    shell:
        "{params.python:q} scripts/prepare_model.py --source {params.source:q} --out {params.folder:q}"
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
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("prepare_text"),
    params:
        python=HOME_PYTHON,
        source=SETTINGS.values["text"],
    shell:
        "{params.python:q} scripts/prepare_text.py --source {params.source:q} --out-text {output.text:q}"
        " --out-record {output.record:q} --log {log:q}"


rule tokenize_text:
    input:
        f"{MODEL}/tokenizer.json",
        code=code_of("scripts/tokenize_text.py"),
        model_record=rules.prepare_model.output.record,
        text=rules.prepare_text.output.text,
    output:
        "results/inputs/tokens.npy",
    log:
        "results/inputs/logs/tokenize_text.log",
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("tokenize_text"),
    params:
        python=HOME_PYTHON,
        model=lambda wildcards, input: os.path.dirname(input.model_record),
        name=SETTINGS.values["text"],
        window_tokens=PERPLEXITY["window_tokens"],
        beside=PERPLEXITY["calibration_tokens"] if CALIBRATES else 0,
    shell:
        "{params.python:q} scripts/tokenize_text.py --model {params.model:q} --text {input.text:q}"
        " --name {params.name:q} --window-tokens {params.window_tokens} --beside {params.beside} --out {output:q} --log {log:q}"


rule perplexity_eval:
    input:
        rules.prepare_model.output,
        code=code_of("scripts/perplexity_eval.py"),
        model_record=rules.prepare_model.output.record,
        token_ids=rules.tokenize_text.output[0],
        text_record=rules.prepare_text.output.record,
    output:
        record=report(
            f"{RESULTS}/perplexity.json",
            caption="captions/perplexity_eval.rst",
            category="Accuracy",
            labels={"machine": "{hardware}"},
        ),
        samples=f"{RESULTS}/perplexity.parquet",
    log:
        f"{RESULTS}/logs/perplexity_eval.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("perplexity_eval"),
    params:
        **PERPLEXITY | {"tokens": lambda wildcards: SETTINGS.tokens[wildcards.hardware]},
        paths=PERPLEXITY["served"]["paths"],
        model=lambda wildcards, input: os.path.dirname(input.model_record),
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        threads=cpus_of,
    # Beside a busy neighbour, threads that spin while they wait are many times slower.
    shell:
        "OMP_WAIT_POLICY=passive {params.python:q} scripts/perplexity_eval.py --model {params.model:q} --token-ids {input.token_ids:q}"
        " --text-record {input.text_record:q} --key {wildcards.hardware:q}"
        " --precisions {params.precisions:q} --window-tokens {params.window_tokens}"
        " --stride-tokens {params.stride_tokens} --tokens {params.tokens} --every {params.every}"
        " --calibration-tokens {params.calibration_tokens} --paths {params.paths:q}"
        " --served-window-tokens {params.served[window_tokens]} --served-stride-tokens {params.served[stride_tokens]}"
        " --served-tokens {params.served[tokens]} --sensitivity-precision {params.sensitivity[precision]}"
        " --sensitivity-tokens {params.sensitivity[tokens]}"
        " --threads {params.threads} --out-record {output.record:q}"
        " --out-samples {output.samples:q} --log {log:q}"
