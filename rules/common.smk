# Validation, wildcard constraints, input closures: what the other rule files share.
import json
import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from serveproof import config as settings_of
from serveproof.cluster import slurm
from serveproof.cluster.check import before_a_run, most_of
from serveproof.cluster.requests import Requests, home
from serveproof.errors import UserError
from serveproof.hardware.key import require
from serveproof.pairs import code_files
from serveproof.provenance import environment
from serveproof.sources import closure
from serveproof.workflow import hold_run_lock, job_environment, source_files

job_environment(ROOT)

# Snakemake would not say which file is broken.
try:
    settings_of.read_yaml(Path("config/config.yaml"))
except UserError as error:
    sys.exit(f"serveproof: {error}")


configfile: "config/config.yaml"


try:
    SETTINGS = settings_of.resolve(config, ROOT, workflow.cores)
except UserError as error:
    sys.exit(f"serveproof: {error}")

MACHINES = SETTINGS.machines
HARDWARE = list(MACHINES)
RESULTS = "results/{hardware}"
PAIRS = sorted(SETTINGS.cases[HARDWARE[0]])
REQUESTS = Requests(
    MACHINES, settings_of.read_yaml(ROOT / "config/resources.yaml"), Path("results")
)
# a parameter of every measuring rule: after an upgrade the figures are measured again
ENVIRONMENT_VERSIONS = environment()
# of rules that belong to no kind of machine
ENVIRONMENT = "../envs/cpu.yaml"


def check_cluster():
    """Before a run through SLURM: what a killed run left is cancelled, and what the cluster can't give is said."""
    cluster = slurm.look()
    for job in slurm.clear_jobs_left_behind(os.getcwd()):
        print(
            f"serveproof: SLURM job {job} of an earlier run cancelled", file=sys.stderr
        )
    REQUESTS.most.update(most_of(cluster))
    defaults = workflow.resource_settings.default_resources or {}
    notes = before_a_run(
        REQUESTS.every(PAIRS, SETTINGS.values),
        workflow.executor_settings,
        {name: getattr(value, "raw", value) for name, value in defaults.items()},
        cluster,
        REQUESTS.folder,
    )
    print(notes, end="\n" if notes else "", file=sys.stderr)


onstart:
    try:
        if workflow.local_exec:
            for key in HARDWARE:
                require(key)
        RUN_LOCK = hold_run_lock(Path(".snakemake"))
        if workflow.executor_plugin.name == "slurm":
            check_cluster()
    except UserError as error:
        sys.exit(f"serveproof: {error}")


# script of several ranks -> (whether one rank is enough, its options on a CPU, on GPUs)
VALIDATED = {
    "multi_gpu_validation": (False, "", "--speed-model llama-8b"),
    "symmetric_memory_inference": (
        False,
        "--validate --model tiny",
        "--validate --model llama-1b --dtype bf16 --tokens 400 --prompt 256",
    ),
    "disaggregated_serving": (
        False,
        "--model tiny",
        "--model llama-8b --dtype bf16 --prompts 512 2048 8192",
    ),
    "moe_performance_benchmark": (
        True,
        "--model moe-tiny",
        "--model qwen3-30b-a3b --dtype bf16 --tokens 4096",
    ),
    "synthetic_moe_inference_benchmark": (
        True,
        "--model moe-tiny",
        "--model qwen3-30b-a3b --layers 8 --dtype bf16 --requests 64 --prompt 256 --tokens 64",
    ),
}


wildcard_constraints:
    validation="|".join(VALIDATED),
    pair="[a-z][a-z0-9_]*",
    hardware="|".join(HARDWARE),


def code_of(script, *more):
    """A script's import closure and further files: every rule's `code` input, since Snakemake doesn't follow imports."""
    return sorted({*closure(script, ROOT), *more})


def kernels_of(wildcards):
    """The two files of a pair, and what they import of serveproof.ops."""
    return code_files(wildcards.pair, ROOT)


def cases_of(wildcards):
    """A pair's cases of the chosen tiers, as the JSON that scripts take."""
    cases = SETTINGS.cases[wildcards.hardware][wildcards.pair]
    return json.dumps(cases, sort_keys=True)


def environment_of(wildcards):
    """The conda environment of a kind of machine, where --sdm conda is given."""
    return f"../envs/{'gpu' if MACHINES[wildcards.hardware].device == 'cuda' else 'cpu'}.yaml"


def python_of(wildcards):
    """The Python of a kind of machine: the submit node's own may have no torch."""
    return MACHINES[wildcards.hardware].python


def cpus_of(wildcards):
    """CPUs of a job that has its machine to itself."""
    return MACHINES[wildcards.hardware].cpus


def pair_cpus_of(wildcards):
    """CPUs of a job on one pair: on a CPU all of them, of several GPUs its GPU's share."""
    return MACHINES[wildcards.hardware].pair_cpus


def ranks_of(wildcards):
    """Ranks a node: one a GPU. On CPUs two on one node, or one on each of several."""
    nodes = SETTINGS.values["distributed"]["nodes"]
    return MACHINES[wildcards.hardware].gpu_request[1] or (1 if nodes > 1 else 2)


def serving_of(name):
    """A setting of the load test as a parameter of a rule: it follows the kind of machine where it is `auto`."""

    def value(wildcards):
        return SETTINGS.serving[wildcards.hardware][name]

    return value


def ranks_for(wildcards):
    """A rank a GPU; two on a CPU, and beside one GPU where one rank is not enough."""
    gpus = MACHINES[wildcards.hardware].gpu_request[1]
    if VALIDATION["ranks"] != "auto":
        return VALIDATION["ranks"]
    return gpus if gpus > 1 or (gpus == 1 and VALIDATED[wildcards.validation][0]) else 2


def options_for(wildcards):
    """Shapes that fill the device; on the CPU of a machine with GPUs it is said that gloo is meant."""
    gpus = MACHINES[wildcards.hardware].gpu_request[1]
    alone_is_enough, on_cpu, on_gpus = VALIDATED[wildcards.validation]
    if gpus > 1 or (gpus == 1 and alone_is_enough):
        return on_gpus
    return on_cpu + (" --device cpu" if gpus else "")


def expectations_of(wildcards):
    """Absent on hardware that nobody has measured yet: every figure is then `absent`."""
    file = f"expectations_{wildcards.hardware}.json"
    return [file] if Path(file).exists() else []
