# Validation, wildcard constraints, input closures: what the other rule files share.
import json
import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from serveproof import config as settings_of
from serveproof.errors import UserError
from serveproof.hardware.key import device_count, device_of, require
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

HARDWARE = SETTINGS.hardware
DEVICE = device_of(HARDWARE)
RESULTS = f"results/{HARDWARE}"
PAIRS = sorted(SETTINGS.cases)
THREADS = SETTINGS.threads
# a parameter of every measuring rule: after an upgrade the figures are measured again
ENVIRONMENT_VERSIONS = environment()
ENVIRONMENT = "../envs/gpu.yaml" if DEVICE == "cuda" else "../envs/cpu.yaml"


onstart:
    try:
        if workflow.local_exec:
            require(HARDWARE)
        RUN_LOCK = hold_run_lock(Path(".snakemake"))
    except UserError as error:
        sys.exit(f"serveproof: {error}")


wildcard_constraints:
    pair="[a-z][a-z0-9_]*",
    hardware="[a-z0-9_]+",


def code_of(script, *more):
    """A script's import closure and further files: every rule's `code` input, since Snakemake doesn't follow imports."""
    return sorted({*closure(script, ROOT), *more})


def kernels_of(wildcards):
    """The two files of a pair, and what they import of serveproof.ops."""
    return code_files(wildcards.pair, ROOT)


def cases_of(wildcards):
    """A pair's cases of the chosen tiers, as the JSON that scripts take."""
    return json.dumps(SETTINGS.cases[wildcards.pair], sort_keys=True)
