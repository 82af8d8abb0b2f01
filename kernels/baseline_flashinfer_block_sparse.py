"""Attention under a block mask, computed as dense attention with the mask: most of what it computes is thrown away.

The mask keeps, for each block of queries, the key blocks within `window_blocks` to either side and, up to `density`,
further blocks drawn at random, alike many in every row (BigBird's pattern, arXiv 2007.14062).

axes: seq, heads, head_dim, block, window_blocks, dtype; optional density (share of the blocks that are kept).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

READS = ("q_SHD", "k_SHD", "v_SHD", "mask_SS")


def block_mask(axes):
    """(M, M) bool, M = seq / block: which key blocks each query block sees; the same for every seed."""
    if axes["seq"] % axes["block"]:
        raise ValueError(f"seq is {axes['seq']}, which is not whole blocks of {axes['block']}")
    M = axes["seq"] // axes["block"]
    number = torch.arange(M)
    mask_MM = (number[:, None] - number[None]).abs() <= axes["window_blocks"]
    if "density" not in axes:
        return mask_MM
    generator = torch.Generator().manual_seed(99)
    total = round(axes["density"] * M * M)
    for row in range(M):
        wanted = total * (row + 1) // M - total * row // M - int(mask_MM[row].sum())
        free = (~mask_MM[row]).nonzero().flatten()
        chosen = free[torch.randperm(len(free), generator=generator)[: max(0, wanted)]]
        mask_MM[row, chosen] = True
    return mask_MM


def make_inputs(axes, device, seed):
    """q, k, v (S, H, D) standard normal; the mask as bool (S, S) and as int32 CSR of blocks (indptr, indices)."""
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    mask_MM = block_mask(axes)
    S, H, D = axes["seq"], axes["heads"], axes["head_dim"]
    inputs = {
        name: torch.randn(S, H, D, generator=generator, device=device, dtype=dtype)
        for name in ("q_SHD", "k_SHD", "v_SHD")
    }
    mask_SS = mask_MM.repeat_interleave(axes["block"], 0).repeat_interleave(axes["block"], 1)
    indptr = F.pad(mask_MM.sum(1).cumsum(0), (1, 0)).int()
    return inputs | {
        "mask_SS": mask_SS.to(device),
        "indptr": indptr.to(device),
        "indices": mask_MM.nonzero()[:, 1].int().to(device),
        "block": axes["block"],
    }


def reference(inputs):
    """Masked softmax attention head by head, float64 on a CPU, float32 on CUDA; (S, H, D)."""
    q_SHD = inputs["q_SHD"]
    wide = torch.float32 if q_SHD.is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    out_SHD = torch.empty(q_SHD.shape, dtype=wide, device=q_SHD.device)
    for h in range(q_SHD.shape[1]):
        q_SD, k_SD, v_SD = (inputs[name][:, h].to(wide) for name in ("q_SHD", "k_SHD", "v_SHD"))
        scores_SS = (q_SD @ k_SD.T) * q_SD.shape[-1] ** -0.5
        out_SHD[:, h] = scores_SS.masked_fill(~inputs["mask_SS"], float("-inf")).softmax(-1).nan_to_num() @ v_SD
    return out_SHD


def work(axes):
    """4 H D FLOPs for each (query, key) that the mask keeps; q, k, v read and out written once."""
    kept = int(block_mask(axes).sum()) * axes["block"] ** 2
    return {
        "flops": 4 * axes["heads"] * axes["head_dim"] * kept,
        "bytes": 4 * axes["seq"] * axes["heads"] * axes["head_dim"] * getattr(torch, axes["dtype"]).itemsize,
        "dtype": axes["dtype"],
        "items": axes["seq"],
        "item": "token",
    }


def build(inputs):
    """SDPA with the mask as a matrix; torch takes the first back end in its order that accepts one.

    The order is fixed, not timed: flash takes no mask; cuDNN is first on compute capability 9 and 10 where it is newer
    than 9.15.0 (PyTorch at 001f694a, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp), else efficient serves.
    """

    def run():
        q_1HSD, k_1HSD, v_1HSD = (inputs[name].transpose(0, 1)[None] for name in ("q_SHD", "k_SHD", "v_SHD"))
        out_1HSD = F.scaled_dot_product_attention(q_1HSD, k_1HSD, v_1HSD, attn_mask=inputs["mask_SS"])
        return out_1HSD[0].transpose(0, 1)

    run.backend = "sdpa with a dense mask"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
