# Each pair: verified against its reference, then timed. A pair's status never stops the others.
MEASURE = SETTINGS.values["measure"]


rule verify_pair:
    input:
        code=code_of("scripts/verify_pair.py"),
        kernels=kernels_of,
    output:
        report(
            f"{RESULTS}/pairs/{{pair}}/verify.json",
            caption="captions/verify_pair.rst",
            category="Pairs",
            labels={
                "machine": "{hardware}",
                "pair": "{pair}",
                "shows": "verification",
            },
        ),
    log:
        f"{RESULTS}/logs/verify_{{pair}}.log",
    conda:
        environment_of
    threads: pair_cpus_of
    resources:
        **REQUESTS.resources("verify_pair"),
    params:
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        cases=cases_of,
        threads=pair_cpus_of,
        seed=MEASURE["seed"],
    shell:
        "{params.python:q} scripts/verify_pair.py --key {wildcards.hardware:q} --pair {wildcards.pair:q}"
        " --cases {params.cases:q} --threads {params.threads} --seed {params.seed}"
        " --out {output:q} --log {log:q}"


rule measure_pair:
    input:
        code=code_of("scripts/measure_pair.py"),
        kernels=kernels_of,
        hardware=rules.hardware.output[0],
        verified=rules.verify_pair.output[0],
    output:
        record=report(
            f"{RESULTS}/pairs/{{pair}}/measure.json",
            caption="captions/measure_pair.rst",
            category="Pairs",
            labels={"machine": "{hardware}", "pair": "{pair}", "shows": "times"},
        ),
        samples=f"{RESULTS}/pairs/{{pair}}/samples.parquet",
    log:
        f"{RESULTS}/logs/measure_{{pair}}.log",
    conda:
        environment_of
    threads: pair_cpus_of
    resources:
        **REQUESTS.resources("measure_pair"),
    params:
        **MEASURE,
        python=python_of,
        environment=ENVIRONMENT_VERSIONS,
        cases=cases_of,
        threads=pair_cpus_of,
    shell:
        "{params.python:q} scripts/measure_pair.py --key {wildcards.hardware:q} --pair {wildcards.pair:q}"
        " --cases {params.cases:q} --threads {params.threads} --seed {params.seed}"
        " --processes {params.processes} --rounds {params.rounds}"
        " --warmup-rounds {params.warmup_rounds}"
        " --injected-slowdown-percent {params.injected_slowdown_percent} --hardware {input.hardware:q}"
        " --verified {input.verified:q} --out {output.record:q}"
        " --out-samples {output.samples:q} --log {log:q}"
