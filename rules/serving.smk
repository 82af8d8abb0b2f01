# How a server serves: what it can carry, then each scenario against each server that the config names, over HTTP.
SERVING = SETTINGS.values["serving"]
SWEEP = SERVING["sweep"]
TESTED = {} if SERVING["mode"] == "none" else SERVING["servers"]
LOAD_TESTS = [
    f"{RESULTS}/serving/{server}/{scenario}"
    for scenario, servers in TESTED.items()
    for server in servers
]
# The client runs as processes of its own, so no script imports it.
CLIENT = "serveproof/load_test/client.py"
# The server is a program of its own: its code is found by its package, not by what a script imports.
SERVER_CODE = code_of(
    "serveproof/server/__main__.py", *code_of("serveproof/server/engine_process.py")
)
LOAD_OPTIONS = (
    " --key {wildcards.hardware:q} --model {params.model:q} --prompts {params.prompts:q} --outputs {params.outputs:q}"
    " --long-tokens {params.long_tokens} --slo {params.slo:q} --duration {params.duration_s}"
    " --price-per-hour {params.price_per_hour} --threads {params.threads} --seed {params.seed}"
    " --hardware {input.hardware:q} --server-options={params.server_options:q}"
    " --tensor-parallel {params.tensor_parallel} --client-processes {params.client_processes} --log {log:q}"
)
LOAD_PARAMS = {
    name: serving_of(name)
    for name in (
        "server_options",
        "tensor_parallel",
        "prompts",
        "outputs",
        "long_tokens",
        "slo",
        "duration_s",
        "price_per_hour",
        "client_processes",
    )
}


wildcard_constraints:
    server="[a-z_]+",
    scenario="[a-z_]+",


rule load_sweep:
    input:
        rules.prepare_model.output,
        model_record=rules.prepare_model.output.record,
        code=code_of("scripts/load_sweep.py", CLIENT),
        server=SERVER_CODE,
        hardware=rules.hardware.output[0],
    output:
        report(
            f"{RESULTS}/serving/sweep.json",
            caption="captions/load_sweep.rst",
            category="Serving",
            labels={
                "machine": "{hardware}",
                "server": "first_come",
                "scenario": "rate sweep",
            },
        ),
    log:
        f"{RESULTS}/logs/load_sweep.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("load_sweep"),
    params:
        **LOAD_PARAMS,
        **SWEEP,
        concurrency=serving_of("concurrency"),
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        model=served_model(SERVING["model"]),
        threads=cpus_of,
        seed=MEASURE["seed"],
    shell:
        "{params.python:q} scripts/load_sweep.py --loads {params.loads} --refinements {params.refinements}"
        " --concurrency {params.concurrency}"
        " --percentile {params.percentile} --confidence {params.confidence} --out {output:q}"
        + LOAD_OPTIONS


rule load_test:
    input:
        rules.prepare_model.output,
        model_record=rules.prepare_model.output.record,
        code=code_of("scripts/inference_server_load_test.py", CLIENT),
        server=SERVER_CODE,
        hardware=rules.hardware.output[0],
        capacity=rules.load_sweep.output[0],
    output:
        record=report(
            f"{RESULTS}/serving/{{server}}/{{scenario}}.json",
            caption="captions/load_test.rst",
            category="Serving",
            labels={
                "machine": "{hardware}",
                "server": "{server}",
                "scenario": "{scenario}",
            },
        ),
        requests=f"{RESULTS}/serving/{{server}}/{{scenario}}.requests.parquet",
        telemetry=f"{RESULTS}/serving/{{server}}/{{scenario}}.telemetry.parquet",
    log:
        f"{RESULTS}/logs/load_test_{{server}}_{{scenario}}.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("load_test"),
    params:
        **LOAD_PARAMS,
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        model=served_model(SERVING["model"]),
        threads=cpus_of,
        seed=MEASURE["seed"],
        runs=SERVING["runs"],
        folder=lambda wildcards, output: os.path.dirname(output.record),
    shell:
        "{params.python:q} scripts/inference_server_load_test.py --server {wildcards.server:q} --scenario {wildcards.scenario:q}"
        " --capacity {input.capacity:q} --runs {params.runs} --out-folder {params.folder:q}"
        + LOAD_OPTIONS


LOAD_RECORDS = [
    *(
        f"{one}{kind}"
        for one in LOAD_TESTS
        for kind in (".json", ".requests.parquet", ".telemetry.parquet")
    ),
    *(rules.load_sweep.output if LOAD_TESTS else []),
]
