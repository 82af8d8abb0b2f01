"""Start a script's ranks with torchrun: on this machine, or as one node of several under srun.

start_ranks.py --nodes N --ranks R script.py arguments...: R ranks a node. With one node torchrun meets itself on this
machine. With several, srun starts this once a node, and SLURM's variables say which node this is (SLURM_NODEID) and
where the first one is: the job's srun runs on the job's first node, whose address every task is told
(SLURM_LAUNCH_NODE_IPADDR). The port follows from the job's id, so that two jobs on a node don't meet.

Needs torch on every node. Writes nothing itself; the script does.

Without SLURM each node is started by hand: --node-rank says which it is, --master HOST:PORT where node 0 listens.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping

from serveproof import script
from serveproof.errors import UserError

# below the ports that Linux hands out by itself (32768 up), above the ones that services are given
FIRST_PORT, PORTS = 20000, 12000
# a node that never comes ends the others' waiting
MEETING_S = 120
NEEDED = ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_NNODES", "SLURM_LAUNCH_NODE_IPADDR")


def rendezvous(nodes: int, ranks: int, variables: Mapping[str, str]) -> list[str]:
    """torchrun's options. UserError where several nodes are wanted and srun did not start them."""
    if nodes == 1:
        return ["--standalone", f"--nproc-per-node={ranks}"]
    missing = [name for name in NEEDED if name not in variables]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not set, so srun did not start this; {nodes} nodes are a SLURM job: "
            f"set distributed.nodes and validation.nodes to 1 in config/config.yaml, or run with --profile "
            f"profiles/slurm"
        )
    if int(variables["SLURM_NNODES"]) != nodes:
        raise UserError(f"SLURM_NNODES: SLURM gave {variables['SLURM_NNODES']} nodes, and the run is for {nodes}")
    return [
        f"--nnodes={nodes}",
        f"--node-rank={variables['SLURM_NODEID']}",
        f"--nproc-per-node={ranks}",
        f"--master-addr={variables['SLURM_LAUNCH_NODE_IPADDR']}",
        f"--master-port={FIRST_PORT + int(variables['SLURM_JOB_ID']) % PORTS}",
    ]


def by_hand(nodes: int, ranks: int, node_rank: int, master: str) -> list[str]:
    """torchrun's options for one node of several that a user starts. UserError for a place that can't be."""
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--master {master}: give node 0's HOST:PORT, such as 10.0.0.1:29500")
    if not 0 <= node_rank < nodes:
        raise UserError(f"--node-rank {node_rank}: nodes are numbered from 0 to {nodes - 1}")
    return [
        f"--nnodes={nodes}",
        f"--node-rank={node_rank}",
        f"--nproc-per-node={ranks}",
        f"--master-addr={host}",
        f"--master-port={port}",
    ]


def check_port(options: list[str]) -> None:
    """UserError on node 0 where another program listens on the port: torchrun would end in a traceback."""
    given = dict(option.split("=", 1) for option in options if "=" in option)
    if given.get("--node-rank") != "0":
        return
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", int(given["--master-port"])))
        except OSError as error:
            raise UserError(
                f"port {given['--master-port']} of node 0 can't be had ({error.strerror}); end what listens there, or "
                f"choose another with --master"
            ) from None


def work(arguments: argparse.Namespace) -> None:
    if arguments.master:
        options = by_hand(arguments.nodes, arguments.ranks, arguments.node_rank, arguments.master)
    else:
        options = rendezvous(arguments.nodes, arguments.ranks, os.environ)
    check_port(options)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each script sets its ranks' threads; torchrun would warn
    if arguments.nodes > 1:
        options.append(f"--rdzv-conf=timeout={MEETING_S}")
    # behind `--`, or torchrun takes the script's --log for an abbreviation of its own options
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--", *arguments.command]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - no shell wanted


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="ranks a node")
    parser.add_argument("--node-rank", type=int, default=0, help="which node this is, with --master")
    parser.add_argument("--master", default="", help="HOST:PORT of node 0, for nodes that are started by hand")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the script and its arguments")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
