# Each pair: verified against its reference, then timed. A pair's status never stops the others.
MEASURE = SETTINGS.values["measure"]
# On a CPU a timed job takes every core. On GPUs it leases one: as many jobs run at once as there are GPUs.
PAIR_CORES = max(1, THREADS // device_count(HARDWARE))


rule verify_pair:
    input:
        code=code_of("scripts/verify_pair.py"),
        kernels=kernels_of,
    output:
        f"{RESULTS}/pairs/{{pair}}/verify.json",
    log:
        f"{RESULTS}/logs/verify_{{pair}}.log",
    conda:
        ENVIRONMENT
    threads: PAIR_CORES
    params:
        key=HARDWARE,
        environment=ENVIRONMENT_VERSIONS,
        cases=cases_of,
        threads=PAIR_CORES,
        seed=MEASURE["seed"],
    shell:
        "python3 scripts/verify_pair.py --key {params.key:q} --pair {wildcards.pair:q}"
        " --cases {params.cases:q} --threads {params.threads} --seed {params.seed}"
        " --out {output:q} --log {log:q}"


rule measure_pair:
    input:
        code=code_of("scripts/measure_pair.py"),
        kernels=kernels_of,
        hardware=rules.hardware.output[0],
        verified=rules.verify_pair.output[0],
    output:
        record=f"{RESULTS}/pairs/{{pair}}/measure.json",
        samples=f"{RESULTS}/pairs/{{pair}}/samples.parquet",
    log:
        f"{RESULTS}/logs/measure_{{pair}}.log",
    conda:
        ENVIRONMENT
    threads: PAIR_CORES
    params:
        **MEASURE,
        key=HARDWARE,
        environment=ENVIRONMENT_VERSIONS,
        cases=cases_of,
        threads=PAIR_CORES,
    shell:
        "python3 scripts/measure_pair.py --key {params.key:q} --pair {wildcards.pair:q}"
        " --cases {params.cases:q} --threads {params.threads} --seed {params.seed}"
        " --processes {params.processes} --rounds {params.rounds}"
        " --warmup-rounds {params.warmup_rounds}"
        " --injected-slowdown-percent {params.injected_slowdown_percent} --hardware {input.hardware:q}"
        " --verified {input.verified:q} --out {output.record:q}"
        " --out-samples {output.samples:q} --log {log:q}"
