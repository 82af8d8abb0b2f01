"""Starting torch on the leased device: threads set, and a GPU that torch can't use said in one line."""

from __future__ import annotations

from serveproof.errors import UserError


def start_torch(device: str, threads: int) -> None:
    """Set torch's threads and make its first CUDA call. Call it under the lease, which chooses the GPU.

    UserError when the device is `cuda` and this torch can't use it: a CPU build, or a driver that is too old.
    """
    import torch

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} can't use the NVIDIA GPU of this machine; install envs/gpu.txt (`make report` "
            f"does), or set `hardware: cpu` in config/config.yaml"
        )
