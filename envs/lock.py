"""Resolve pyproject.toml's needs into the full locks envs/*.txt: `make lock`, on Linux with Python 3.11.

The oldest supported Python resolves to versions that every newer one takes as well. test.txt holds only what it adds
to cpu.txt. The GPU lock is resolved by uv, which can do so for a machine other than this one; the CPU lock by pip,
which takes a CPU build of torch where one is offered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
# A plain `torch` pulls gigabytes of CUDA packages onto a CPU machine, and every torch brings other numerics.
TORCH = "torch==2.13.0"


def resolve(requirements: list[str]) -> dict[str, str]:
    """name -> version of everything that `requirements` need, without installing it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run([*command, *requirements], check=True, text=True, stdout=subprocess.PIPE).stdout)
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    return {name: version.split("+")[0] for name, version in sorted(found.items())}


def resolve_gpu(requirements: list[str]) -> dict[str, str]:
    """The same for a Linux machine with an NVIDIA driver."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "-"]
    listed = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, input="\n".join(requirements)
    ).stdout
    pairs = [line.split(";")[0].strip().split("==") for line in listed.splitlines() if "==" in line]
    return {name.split("[")[0]: version for name, version in sorted(pairs)}


def write(name: str, packages: dict[str, str], head: str) -> None:
    lines = [f"# {head} Made by `make lock` from pyproject.toml; don't edit."]
    lines += [f"{package}=={version}" for package, version in packages.items()]
    (HERE / name).write_text("\n".join(lines) + "\n")
    print(f"envs/{name}: {len(packages)} packages")


def write_conda(name: str, packages: dict[str, str]) -> None:
    """The lock as a conda environment; the packages inline, for Snakemake copies the file away from the lock."""
    lines = ["# For --sdm conda. Made by `make lock`; don't edit.", "channels: [conda-forge, nodefaults]"]
    lines += ["dependencies:", "  - python=3.12", "  - pip", "  - pip:"]
    lines += [f"      - {package}=={version}" for package, version in packages.items()]
    (HERE / name).write_text("\n".join(lines) + "\n")


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = [TORCH, *project["dependencies"]]
    cpu = resolve(base)
    write_conda("cpu.yaml", cpu)
    write("cpu.txt", cpu, "What a machine without an NVIDIA driver installs.")
    pinned = [f"{name}=={version}" for name, version in cpu.items()]
    added = resolve([*pinned, *extras["test"]])
    write("test.txt", {n: v for n, v in added.items() if n not in cpu}, "What tests and linters add to cpu.txt.")
    clients = resolve([TORCH, *extras["clients"]])
    write("clients.txt", clients, "Load clients and an evaluation harness, in an environment of their own.")
    gpu = resolve_gpu([*pinned, *extras["gpu"]])
    write_conda("gpu.yaml", gpu)
    write("gpu.txt", gpu, "What a machine with an NVIDIA driver installs.")


if __name__ == "__main__":
    main()
