# serveproof: which LLM-serving optimizations pay on this machine. docs/architecture.md draws the DAG.
from snakemake.utils import min_version

min_version("9.27")


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/hardware.smk"
include: "rules/pairs.smk"
include: "rules/profiling.smk"
include: "rules/quality.smk"
include: "rules/engine.smk"
include: "rules/distributed.smk"
include: "rules/serving.smk"
include: "rules/validation.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        rules.report.output,
        # A result that was lost is made again, although the page that showed it is newer than what it came from.
        rules.report.input.hardware,
        rules.report.input.verified,
        rules.report.input.measured,
        rules.report.input.samples,
        rules.report.input.profiles,
        rules.report.input.decoder,
        rules.report.input.perplexity,
        rules.report.input.ladder,
        rules.report.input.ranked,
        rules.report.input.judgement,
        rules.report.input.history,
        rules.report.input.ranks,
        rules.report.input.serving,


# What `aisp bench run` and `compare.py --targets` ask for: the pairs of the config, without the report.
rule bench:
    input:
        rules.report.input.measured,
        rules.report.input.samples,
        rules.report.input.profiles,


# under a second: a job of SLURM would take longer to start
localrules:
    all,
    bench,
    judge,
    history,
