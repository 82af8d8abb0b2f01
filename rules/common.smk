# Validation, wildcard constraints, input closures: what the other rule files share.
import json
import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))
# Jobs import serveproof from this checkout, whatever environment they run in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
)

from serveproof import config as settings_of
from serveproof.errors import UserError
from serveproof.hardware.key import device_of
from serveproof.runlock import hold_run_lock
from serveproof.sources import closure

try:
    SETTINGS = settings_of.resolve(config, ROOT, workflow.cores)
except UserError as error:
    sys.exit(f"serveproof: {error}")

HARDWARE = SETTINGS.hardware
DEVICE = device_of(HARDWARE)
RESULTS = f"results/{HARDWARE}"
PAIRS = sorted(SETTINGS.cases)
THREADS = SETTINGS.threads
# Under --sdm conda the environment's own python runs the jobs; else the one that runs Snakemake.
CONDA = "conda" in {
    str(m).rsplit(".", 1)[-1].lower()
    for m in workflow.deployment_settings.deployment_method
}
PYTHON = "python" if CONDA else sys.executable
ENVIRONMENT = "../envs/gpu.yaml" if DEVICE == "cuda" else "../envs/cpu.yaml"


onstart:
    try:
        RUN_LOCK = hold_run_lock(Path(".snakemake"))
    except UserError as error:
        sys.exit(f"serveproof: {error}")


wildcard_constraints:
    pair="[a-z][a-z0-9_]*",
    hardware="[a-z0-9_]+",


def code_of(script, *more):
    """A script's import closure and further files: every rule's `code` input, since Snakemake doesn't follow imports."""
    return sorted({*closure(script, ROOT), *more})


def source_files(setting):
    """The files behind a `default`-or-path setting: a changed file of the user's reruns what read it."""
    if setting == "default":
        return []
    path = Path(setting).expanduser()
    return (
        sorted(str(p) for p in path.iterdir() if p.is_file())
        if path.is_dir()
        else [str(path)]
    )


def kernels_of(wildcards):
    """The two files of a pair."""
    return [
        f"kernels/{side}_{wildcards.pair}.py" for side in ("baseline", "optimized")
    ]


def cases_of(wildcards):
    """A pair's cases of the chosen tiers, as the JSON that scripts take."""
    return json.dumps(SETTINGS.cases[wildcards.pair], sort_keys=True)
