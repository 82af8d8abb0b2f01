# Every figure held against what is expected of it, and one page that shows it.
EXPECTATIONS = f"expectations_{HARDWARE}.json"


rule judge:
    input:
        code=code_of("scripts/judge.py"),
        # absent on hardware that nobody has measured yet: every figure is then `absent`
        expectations=[EXPECTATIONS] if Path(EXPECTATIONS).exists() else [],
        measured=expand(rules.measure_pair.output.record, pair=PAIRS),
        perplexity=rules.perplexity_eval.output.record,
    output:
        f"{RESULTS}/judgement.json",
    log:
        f"{RESULTS}/logs/judge.log",
    conda:
        ENVIRONMENT
    params:
        key=HARDWARE,
        max_increase_percent=SETTINGS.values["accuracy_gate"]["max_increase_percent"],
    shell:
        "python3 scripts/judge.py --key {params.key:q} --expectations {input.expectations:q}"
        " --measured {input.measured:q} --perplexity {input.perplexity:q}"
        " --max-increase-percent {params.max_increase_percent} --out {output:q} --log {log:q}"


rule report:
    input:
        code=code_of("scripts/report.py"),
        templates=sorted(map(str, Path("serveproof/report/templates").glob("*"))),
        hardware=rules.hardware.output[0],
        verified=expand(rules.verify_pair.output[0], pair=PAIRS),
        measured=rules.judge.input.measured,
        samples=expand(rules.measure_pair.output.samples, pair=PAIRS),
        profiles=expand(rules.profile_pair.output.record, pair=PROFILED),
        decoder=[rules.profile_decoder.output.record] if DECODERS else [],
        perplexity=rules.perplexity_eval.output,
        ladder=rules.ladder.output if LADDERS else [],
        judgement=rules.judge.output[0],
    output:
        "reports/index.html",
    log:
        "reports/logs/report.log",
    conda:
        ENVIRONMENT
    params:
        results=lambda wildcards, input: os.path.dirname(input.hardware),
        pairs=PAIRS,
    shell:
        "python3 scripts/report.py --results {params.results:q} --pairs {params.pairs:q} --out {output:q} --log {log:q}"
