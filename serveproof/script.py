"""What every script does around its work: a log file beside stderr, one-line errors, a progress bar on a terminal."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from serveproof.cluster import usage
from serveproof.errors import UserError

T = TypeVar("T")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the option that every script has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", type=Path, help="also write messages and errors to this file")
    return made


def engine_parser(description: str, dtypes: Iterable[str], dtype: str) -> argparse.ArgumentParser:
    """`parser` with what every script of the engine is told: the hardware, the model, the dtype it computes in."""
    made = parser(description)
    made.add_argument("--key", default="cpu", help="hardware key: cpu, h200, ...")
    made.add_argument("--model", required=True, help="a model directory, llama-1b, llama-8b or a config.json")
    made.add_argument("--dtype", default=dtype, choices=tuple(dtypes))
    return made


def run(work: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Do the work and note what it used, beside the log.

    A UserError is one line and exit code 2; anything else is a bug, with its traceback and code 1.
    """
    if arguments.log:
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        arguments.log.write_text("")
    started = time.monotonic()
    try:
        work(arguments)
        if arguments.log:
            usage.note(arguments.log, time.monotonic() - started)
    except UserError as error:
        say(arguments.log, f"serveproof: {error}")
        raise SystemExit(2) from None
    except Exception:
        say(arguments.log, traceback.format_exc())
        raise SystemExit(1) from None


def say(log: Path | None, message: str) -> None:
    """One line on stderr and at the end of the log."""
    print(message, file=sys.stderr)
    if log:
        with log.open("a") as file:
            file.write(message + "\n")


def progress(items: Iterable[T], description: str) -> tqdm[T]:
    """A tqdm bar on a terminal; silent elsewhere, where Snakemake's own log shows the progress."""
    return tqdm(items, desc=description, disable=None, leave=False)
