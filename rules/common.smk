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
from serveproof.workflow import (
    hold_run_lock,
    job_environment,
    source_files,
    start_again,
)

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
    left = slurm.clear_jobs_left_behind(os.getcwd())
    for job in left:
        print(
            f"serveproof: SLURM job {job} of an earlier run cancelled", file=sys.stderr
        )
    if left:
        # The plan may hold for done what such a job wrote, and what its Snakemake deleted when it was cancelled.
        start_again()
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
        else:
            settings_of.one_node(SETTINGS.values)
    except UserError as error:
        sys.exit(f"serveproof: {error}")


VALIDATION = SETTINGS.values["validation"]
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


def gpus_of(wildcards):
    """GPUs that a job asks of a node of this kind; 0 where it has none."""
    return MACHINES[wildcards.hardware].gpu_request[1]


def srun_over(nodes):
    """What goes before start_ranks.py: one task a node, for torchrun starts the ranks of its own; '' on one node."""

    def command(wildcards):
        # all is said: the plugin clears what srun would inherit
        return (
            f"srun --nodes={nodes} --ntasks={nodes} --cpus-per-task={cpus_of(wildcards)} --kill-on-bad-exit=1"
            if nodes > 1
            else ""
        )

    return command


def ranks_on_cpus(nodes):
    """Ranks a node without GPUs: two on one node, or one on each of several."""
    return 1 if nodes > 1 else 2


def ranks_of(wildcards):
    """Ranks a node of the engine: one a GPU."""
    return gpus_of(wildcards) or ranks_on_cpus(SETTINGS.values["distributed"]["nodes"])


def serving_of(name):
    """A setting of the load test as a parameter of a rule: it follows the kind of machine where it is `auto`."""

    def value(wildcards):
        return SETTINGS.serving[wildcards.hardware][name]

    return value


def served_model(setting):
    """The --model of what serves: `setting`, or where that is `prepared` the prepared model's folder."""

    def value(wildcards, input):
        chosen = setting
        if chosen == "auto":
            device = MACHINES[wildcards.hardware].device
            chosen = settings_of.AUTO_SERVING[device]["model"]
        if chosen == settings_of.PREPARED:
            return os.path.dirname(input.model_record)
        return chosen

    return value


def is_on_gpus(wildcards):
    """Whether a validation's ranks are on GPUs: where these are two over all nodes, or one and one rank is enough."""
    gpus, nodes = gpus_of(wildcards), VALIDATION["nodes"]
    return gpus * nodes > 1 or (gpus == 1 and VALIDATED[wildcards.validation][0])


def ranks_for(wildcards):
    """Ranks a node of a validation: one a GPU; of those on CPUs as many as without GPUs."""
    if VALIDATION["ranks"] != "auto":
        return VALIDATION["ranks"]
    if is_on_gpus(wildcards):
        return gpus_of(wildcards)
    return ranks_on_cpus(VALIDATION["nodes"])


def options_for(wildcards):
    """Shapes that fill the device; on the CPU of a machine with GPUs it is said that gloo is meant."""
    _, on_cpu, on_gpus = VALIDATED[wildcards.validation]
    if is_on_gpus(wildcards):
        return on_gpus
    return on_cpu + (" --device cpu" if gpus_of(wildcards) else "")


def expectations_of(wildcards):
    """Absent on hardware that nobody has measured yet: every figure is then `absent`."""
    file = f"expectations_{wildcards.hardware}.json"
    return [file] if Path(file).exists() else []
