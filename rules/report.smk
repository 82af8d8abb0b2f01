# Every figure held against what is expected of it, and one page that shows it.


rule judge:
    input:
        code=code_of("scripts/judge.py"),
        expectations=expectations_of,
        measured=expand(
            rules.measure_pair.output.record, pair=PAIRS, allow_missing=True
        ),
        perplexity=rules.perplexity_eval.output.record,
        ladder=rules.ladder.output if LADDERS else [],
        serving=[f"{one}.json" for one in LOAD_TESTS],
        ranked=expand(
            rules.validate_ranks.output[0],
            validation=VALIDATIONS,
            allow_missing=True,
        ),
    output:
        report(
            f"{RESULTS}/judgement.json",
            caption="captions/judge.rst",
            category="Verdicts",
            labels={"machine": "{hardware}"},
        ),
    log:
        f"{RESULTS}/logs/judge.log",
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("judge"),
    params:
        max_increase_percent=SETTINGS.values["accuracy_gate"]["max_increase_percent"],
        bounds=[
            f"{name}={percent}"
            for name, percent in SETTINGS.values["accuracy_gate"]
            .get("bounds", {})
            .items()
        ],
    shell:
        "python3 scripts/judge.py --key {wildcards.hardware:q} --expectations {input.expectations:q}"
        " --measured {input.measured:q} --perplexity {input.perplexity:q} --serving {input.serving:q}"
        " --ranked {input.ranked:q} --ladder {input.ladder:q} --bounds {params.bounds:q}"
        " --max-increase-percent {params.max_increase_percent} --out {output:q} --log {log:q}"


# What is noted lies outside this rule's outputs: snakemake deletes those before it runs, and a history must stay.
rule history:
    input:
        code=code_of("scripts/history.py"),
        hardware=rules.hardware.output[0],
        measured=rules.judge.input.measured,
        perplexity=rules.perplexity_eval.output.record,
        serving=rules.judge.input.serving,
        ranked=rules.judge.input.ranked,
    output:
        f"{RESULTS}/history.json",
    log:
        f"{RESULTS}/logs/history.log",
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("history"),
    params:
        pairs=PAIRS,
        results=lambda wildcards, input: os.path.dirname(input.hardware),
    shell:
        "python3 scripts/history.py --results {params.results:q} --pairs {params.pairs:q}"
        " --out {output:q} --log {log:q}"


rule report:
    input:
        code=code_of("scripts/report.py"),
        templates=sorted(map(str, Path("serveproof/report/templates").glob("*"))),
        public="expectations_b200.json",
        hardware=expand(rules.hardware.output[0], hardware=HARDWARE),
        verified=expand(rules.verify_pair.output[0], hardware=HARDWARE, pair=PAIRS),
        measured=expand(rules.judge.input.measured, hardware=HARDWARE),
        samples=expand(rules.measure_pair.output.samples, hardware=HARDWARE, pair=PAIRS),
        profiles=expand(
            rules.profile_pair.output.record, hardware=HARDWARE, pair=PROFILED
        ),
        decoder=(
            expand(rules.profile_decoder.output.record, hardware=HARDWARE)
            if DECODERS
            else []
        ),
        perplexity=expand(rules.perplexity_eval.output, hardware=HARDWARE),
        ladder=expand(rules.ladder.output, hardware=HARDWARE) if LADDERS else [],
        judgement=expand(rules.judge.output[0], hardware=HARDWARE),
        history=expand(rules.history.output[0], hardware=HARDWARE),
        ranked=expand(rules.judge.input.ranked, hardware=HARDWARE),
        serving=expand(LOAD_RECORDS, hardware=HARDWARE),
        ranks=expand(rules.inference_serving_multigpu.output[0], hardware=RANKED),
    output:
        report(
            "reports/index.html",
            caption="captions/report.rst",
            category="Report",
            labels={"shows": "every figure on one page"},
        ),
    log:
        "reports/logs/report.log",
    conda:
        ENVIRONMENT
    resources:
        **REQUESTS.resources("report"),
    params:
        results=lambda wildcards, input: [
            os.path.dirname(path) for path in input.hardware
        ],
        pairs=PAIRS,
    # --records: what an earlier run left in the folders is no part of this one's report
    shell:
        "python3 scripts/report.py --results {params.results:q} --pairs {params.pairs:q}"
        " --records {input.profiles:q} {input.decoder:q} {input.ladder:q} {input.ranked:q} {input.serving:q}"
        " --public {input.public:q} --out {output:q} --log {log:q}"
