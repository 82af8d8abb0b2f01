"""Does a closure make the host wait for the GPU? Told by torch's sync debug mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class HostSync(Exception):
    """A closure that says it never waits for the GPU did."""


@contextmanager
def no_host_sync(wanted: bool) -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU raises HostSync: torch's sync debug mode. Nothing on a CPU."""
    if not (wanted and torch.cuda.is_available()):
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise HostSync(f"the closure waits for the GPU although NO_HOST_SYNC says it doesn't: {error}") from None
    finally:
        torch.cuda.set_sync_debug_mode("default")
