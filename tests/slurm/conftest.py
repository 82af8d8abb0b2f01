"""A real SLURM cluster of two nodes on this host, and copies of the repository that run through it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.locks import locked
from tests.workflow.conftest import Checkout, Done, fresh

__all__ = ["fresh"]
HERE = Path(__file__).resolve().parent
PLAIN = ("slurm-wlm", "munge")
ACCOUNTING = ("slurmdbd", "mariadb-server")
PROGRAMS = {"slurm-wlm": "/usr/sbin/slurmctld", "munge": "/usr/sbin/munged", "slurmdbd": "/usr/sbin/slurmdbd"}
PROGRAMS |= {"mariadb-server": "/usr/sbin/mariadbd"}


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Test runs of several checkouts on this machine take their turn: a port that was free is taken by who asks next,
    and so is dpkg's lock."""
    with locked(Path(tempfile.gettempdir(), "serveproof-slurm-tests.lock")):
        yield


def install(packages: tuple[str, ...]) -> None:
    """Debian's packages where they are absent; where that can't be, the tests are skipped with the reason."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster of one's own needs root")
    with one_at_a_time():
        _install(packages)
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("snakemake-executor-plugin-slurm is not installed; `make test` installs it")


def _install(packages: tuple[str, ...]) -> None:
    absent = [name for name in packages if not Path(PROGRAMS[name]).exists()]
    if absent and shutil.which("apt-get") is None:
        pytest.skip(f"{', '.join(absent)}: not installed, and there is no apt-get")
    if absent:
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
        wait = ("-o", "DPkg::Lock::Timeout=120")  # another package may be on its way
        command = ["apt-get", "install", *wait, "-y", "-qq", "--no-install-recommends", *absent]
        done = subprocess.run(command, check=False, **quiet)  # type: ignore[call-overload]
        if done.returncode:
            pytest.skip(f"{', '.join(absent)}: apt-get could not install: {done.stderr.strip().splitlines()[-1:]}")


def free_ports() -> int:
    """The first of six ports that nobody listens on, below those that Linux hands out."""
    for base in range(16817, 30000, 100):
        try:
            for offset in range(6):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `port` is its controller's."""

    folder: Path
    port: int

    def environment(self) -> dict[str, str]:
        own = {"CLUSTER": str(self.folder), "PORT": str(self.port)}
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**own, "SLURM_CONF": str(self.folder / "etc" / "slurm.conf"), "PATH": path}

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.environment()}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, where: Path) -> dict[str, str]:
        """comment -> id of the jobs that run now, submitted from `where`."""
        lines = self.call("squeue", "-h", "-t", "R", "-o", "%i|%k|%Z").splitlines()
        rows = [line.split("|") for line in lines]
        return {comment: number for number, comment, folder in rows if folder == str(where)}

    def idle(self) -> None:
        """Wait until both nodes are up and nothing runs."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.call("sinfo", "-h", "-N", "-p", "cpu", "-t", "idle", "-o", "%N").split() == ["n1", "n2"]:
                return
            time.sleep(0.2)
        raise AssertionError(self.call("sinfo", "-N"))


def started(folder: Path, accounting: str) -> Iterator[Cluster]:
    log = folder / "start.log"
    with one_at_a_time(), log.open("w") as output:
        cluster = Cluster(folder, free_ports())
        environment = {**os.environ, **cluster.environment()}
        done = subprocess.run(
            [str(HERE / "cluster" / "start.sh"), accounting],
            env=environment, stdout=output, stderr=output, check=False, timeout=120,
        )  # fmt: skip
    try:
        assert done.returncode == 0, log.read_text()
        yield cluster
    finally:
        subprocess.run([str(HERE / "cluster" / "stop.sh")], env=environment, check=False, timeout=120)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Without accounting."""
    install(PLAIN)
    yield from started(tmp_path_factory.mktemp("cluster"), "none")


@pytest.fixture(scope="session")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With accounts that are enforced, in a database of its own."""
    install((*PLAIN, *ACCOUNTING))
    yield from started(tmp_path_factory.mktemp("accounted"), "dbd")


@dataclass(frozen=True)
class Submitting:
    """A checkout whose runs go through a cluster."""

    checkout: Checkout
    cluster: Cluster

    def command(self, *arguments: str, machines: dict[str, Any], **settings: str) -> list[str]:
        asked = {"hardware": json.dumps(machines).replace('"', ""), "pairs": "[flash_sdp]", **settings}
        return self.checkout.snakemake("--profile", "profiles/slurm", *arguments, **asked)

    def run(self, *arguments: str, machines: dict[str, Any], wait: dict[str, float] | None = None, **more: str) -> Done:
        command = self.command(*arguments, machines=machines, **more)
        return self.checkout.call(command, **self.cluster.environment(), STUB_WAIT=json.dumps(wait or {}))

    def start(
        self, *arguments: str, machines: dict[str, Any], wait: dict[str, float] | None = None, **more: str
    ) -> subprocess.Popen[str]:
        command = self.command(*arguments, machines=machines, **more)
        return self.checkout.start(command, **self.cluster.environment(), STUB_WAIT=json.dumps(wait or {}))

    def running(self, comment: str, log: str, process: subprocess.Popen[str]) -> str:
        """The id of the job with that comment, once its script has begun, which is when it writes to its log."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            assert process.poll() is None, process.communicate()[0]
            found = self.cluster.jobs(self.checkout.folder)
            if comment in found and (self.checkout.results / log).exists():
                return found[comment]
            time.sleep(0.2)
        raise AssertionError(f"{comment} never ran: {found}")

    def notes(self) -> dict[str, dict[str, Any]]:
        """What each stub noted, by its log's path under results/."""
        folder = self.checkout.results
        found = folder.rglob("*.stub.json")
        return {
            str(path.relative_to(folder)).removesuffix(".stub.json"): json.loads(path.read_text()) for path in found
        }


def with_stubs(checkout: Checkout) -> Checkout:
    """Every script of the DAG replaced by the stub, but for the one that starts ranks."""
    stub = (HERE / "stub.py").read_text()
    for path in (checkout.folder / "scripts").glob("*.py"):
        if path.name not in ("start_ranks.py", "slurm_check.py"):
            path.write_text(stub)
    return checkout


@pytest.fixture
def real(fresh: Checkout, cluster: Cluster, tmp_path: Path) -> Submitting:
    """Nothing replaced."""
    return Submitting(fresh.copy(tmp_path / "checkout"), cluster)


@pytest.fixture
def stubbed(fresh: Checkout, cluster: Cluster, tmp_path: Path) -> Submitting:
    """The DAG with stubs: what is scheduled, not what is measured."""
    return Submitting(with_stubs(fresh.copy(tmp_path / "checkout")), cluster)
