# Where the time goes. In processes, and jobs, of their own: no verdict's times are taken beside a profiler.
PROFILE = SETTINGS.values["profile"]
PROFILED = PAIRS if PROFILE["mode"] != "none" else []
NSYS = "--nsys" if PROFILE["nsys"] else ""
DECODER = PROFILE["decoder"]
DECODERS = [] if "none" in (PROFILE["mode"], DECODER["model"]) else ["decoder"]


rule profile_pair:
    input:
        code=code_of("scripts/profile_pair.py"),
        kernels=kernels_of,
        hardware=rules.hardware.output[0],
        measured=rules.measure_pair.output.record,
    output:
        record=report(
            f"{RESULTS}/pairs/{{pair}}/profile.json",
            caption="captions/profile_pair.rst",
            category="Profiles",
            labels={"machine": "{hardware}", "pair": "{pair}"},
        ),
        traces=directory(f"{RESULTS}/pairs/{{pair}}/traces"),
    log:
        f"{RESULTS}/logs/profile_{{pair}}.log",
    conda:
        environment_of
    threads: pair_cpus_of
    resources:
        **REQUESTS.resources("profile_pair"),
    params:
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        cases=cases_of,
        threads=pair_cpus_of,
        seed=MEASURE["seed"],
        mode=PROFILE["mode"],
        trace_mb=PROFILE["trace_mb"],
        nsys=NSYS,
    shell:
        "{params.python:q} scripts/profile_pair.py --key {wildcards.hardware:q} --pair {wildcards.pair:q}"
        " --cases {params.cases:q} --threads {params.threads} --seed {params.seed}"
        " --profile {params.mode:q} --trace-mb {params.trace_mb} {params.nsys} --hardware {input.hardware:q}"
        " --measured {input.measured:q} --out {output.record:q} --out-traces {output.traces:q} --log {log:q}"


rule profile_decoder:
    input:
        code=code_of("scripts/inference_profiling.py"),
        hardware=rules.hardware.output[0],
        model=[] if DECODER["model"] == "none" else [DECODER["model"]],
    output:
        record=report(
            f"{RESULTS}/decoder_profile.json",
            caption="captions/profile_decoder.rst",
            category="Profiles",
            labels={"machine": "{hardware}", "pair": "a whole decoder"},
        ),
        traces=directory(f"{RESULTS}/decoder_profile_traces"),
    log:
        f"{RESULTS}/logs/profile_decoder.log",
    conda:
        environment_of
    threads: cpus_of
    resources:
        **REQUESTS.resources("profile_decoder"),
    params:
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        threads=cpus_of,
        batches=DECODER["batches"],
        contexts=DECODER["contexts"],
        mode=PROFILE["mode"],
        trace_mb=PROFILE["trace_mb"],
    shell:
        "{params.python:q} scripts/inference_profiling.py --key {wildcards.hardware:q} --model {input.model:q}"
        " --batch {params.batches} --context {params.contexts} --profile {params.mode:q}"
        " --trace-mb {params.trace_mb} --threads {params.threads} --hardware {input.hardware:q}"
        " --out {output.record:q} --out-traces {output.traces:q} --log {log:q} > {log:q}.txt"
