"""Rule hardware: says what this machine is and measures its ceilings, once, alone on the device.

Needs the machine that --key names. Writes results.HardwareRecord (results/{hardware}/hardware.json).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
from pathlib import Path

import psutil
import torch

from serveproof import script
from serveproof.cluster.usage import placement
from serveproof.hardware import ceilings, clocks
from serveproof.hardware.key import device_of, driver_version, require
from serveproof.hardware.lease import lease
from serveproof.hardware.start import start_torch
from serveproof.results import HardwareRecord, write


def cpu_model() -> str:
    """The processor's name as Linux has it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1].strip() if found else platform.processor()


def work(arguments: argparse.Namespace) -> None:
    require(arguments.key)
    device = device_of(arguments.key)
    # a GPU beside a CPU that is measured is not what the record is of
    states = clocks.device_states() if device == "cuda" else []
    pressure = clocks.cpu_pressure_percent()
    with lease(device):
        start_torch(device, arguments.threads)
        measured = ceilings.measure(device)
    frequency = psutil.cpu_freq()
    write(
        arguments.out,
        HardwareRecord(
            key=arguments.key,
            device="cpu" if device == "cpu" else "cuda",
            name=states[0].name if states else cpu_model(),
            count=max(1, len(states)),
            states=states,
            driver=driver_version(),
            cuda=torch.version.cuda or "",
            torch=str(torch.__version__),
            python=platform.python_version(),
            cpu_model=cpu_model(),
            cpu_count=psutil.cpu_count() or 0,
            host_memory_bytes=psutil.virtual_memory().total,
            cpu_clock_mhz=frequency.current if frequency else None,
            pressure_some_avg10_percent=pressure,
            ceilings=measured,
            placement=placement(),
            date_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
    )


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--key", required=True, help="the hardware key that the run is for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
