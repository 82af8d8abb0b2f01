"""A process that prints how late it ran, ms, each time it was more than `STALL_MS`; on each core, until stdin ends.

Started by tests/host_stalls.py, without site-packages: it is there in 30 ms.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time

# Processes on one core take turns of some 3 ms. In 50 s of load tests on two quiet cores nobody waited for 8 ms;
# a client is called late from 10 ms on.
STALL_MS = 8.0
BEAT_S = 0.001
WATCHED_CORES = 4


def beat(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    ended = False
    while not ended:
        begun = time.monotonic()
        ended = bool(select.select([sys.stdin], [], [], BEAT_S)[0])
        late_ms = 1e3 * (time.monotonic() - begun - BEAT_S)
        if late_ms > STALL_MS:
            print(f"{late_ms:.1f}", flush=True)


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))[:WATCHED_CORES] if hasattr(os, "sched_getaffinity") else [None]
    threads = [threading.Thread(target=beat, args=(core,)) for core in cores]
    print("watching", flush=True)
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
