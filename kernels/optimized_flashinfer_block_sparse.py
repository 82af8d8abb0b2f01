"""Attention under a block mask that computes the kept blocks alone.

On CUDA the fastest of flashinfer's BlockSparseAttentionWrapper (arXiv 2501.01005), torch's flex_attention (arXiv
2412.05496) and a kernel of our own in Triton (serveproof/ops/block_sparse.py). On a CPU the kept key blocks of each row
are gathered, and rows with as many blocks go through SDPA together.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

READS = ("q_SHD", "k_SHD", "v_SHD", "indptr", "indices", "block")
NO_HOST_SYNC = True
WORKSPACE_BYTES = 256 * 2**20
FLEX_BLOCK = 128
FA3_LEAST_SEQ = 4096


def requires(device):
    """None: every device has a way, and each back end says for itself what it lacks."""
    return None


def build(inputs):
    """The gather on a CPU; on CUDA the candidates."""
    if not inputs["q_SHD"].is_cuda:
        return build_gather(inputs)
    return {
        "triton block-sparse": lambda: build_triton(inputs),
        "flashinfer fa3": lambda: build_flashinfer(inputs, "fa3"),
        "flashinfer fa2": lambda: build_flashinfer(inputs, "fa2"),
        "flex_attention": lambda: build_flex(inputs),
    }


def build_gather(inputs):
    """Rows of blocks grouped by how many key blocks they see; one gather and one SDPA a group."""
    q_SHD, block = inputs["q_SHD"], inputs["block"]
    S, H, D = q_SHD.shape
    indptr, indices = inputs["indptr"].long(), inputs["indices"].long()
    counts_M = indptr.diff()
    groups = []
    for count in counts_M.unique().tolist():
        rows = (counts_M == count).nonzero().flatten()
        columns = indices[(indptr[rows, None] + torch.arange(count)[None]).flatten()]
        groups.append((rows, columns, count))

    def run():
        out_MTHD = torch.zeros_like(q_SHD).view(-1, block, H, D)
        q_MTHD, k_MTHD, v_MTHD = (inputs[name].view(-1, block, H, D) for name in ("q_SHD", "k_SHD", "v_SHD"))
        for rows, columns, count in groups:
            if not count:
                continue
            k_RTHD = k_MTHD[columns].view(len(rows), count * block, H, D)
            v_RTHD = v_MTHD[columns].view(len(rows), count * block, H, D)
            out_RHTD = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q_MTHD[rows], k_RTHD, v_RTHD)))
            out_MTHD[rows] = out_RHTD.transpose(1, 2)
        return out_MTHD.view(S, H, D)

    run.backend = "gather by block row"
    run.plan = "block rows grouped by their number of key blocks once, outside the timed region"
    return run


def build_triton(inputs):
    """Our kernel over the CSR as it is."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("triton is not installed: it comes with torch for CUDA")
    from serveproof.ops.block_sparse import block_sparse_attention

    def run():
        return block_sparse_attention(*(inputs[name] for name in READS))

    return run


def build_flashinfer(inputs, backend):
    """flashinfer's wrapper, planned once for the mask."""
    if importlib.util.find_spec("flashinfer") is None:
        raise NotImplementedError("flashinfer is not installed: pip install flashinfer-python (envs/gpu.txt has it)")
    import flashinfer

    q_SHD, k_SHD, v_SHD, block = inputs["q_SHD"], inputs["k_SHD"], inputs["v_SHD"], inputs["block"]
    S, H, D = q_SHD.shape
    if backend == "fa3" and S < FA3_LEAST_SEQ:
        raise NotImplementedError(f"tried from {FA3_LEAST_SEQ} tokens up: it takes more than a minute to compile")
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q_SHD.device)
    wrapper = flashinfer.BlockSparseAttentionWrapper(workspace, backend=backend)
    wrapper.plan(
        inputs["indptr"], inputs["indices"], S, S, block, block, H, H, D,
        q_data_type=q_SHD.dtype, kv_data_type=k_SHD.dtype, o_data_type=q_SHD.dtype,
    )  # fmt: skip

    def run():
        return wrapper.run(q_SHD, k_SHD, v_SHD)

    run.plan = "plan() outside the timed region: one for a mask"
    return run


def build_flex(inputs):
    """flex_attention compiled, its block mask made once from the CSR; blocks under 128 are masked inside its tiles."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q_SHD, block = inputs["q_SHD"], inputs["block"]
    S = q_SHD.shape[0]
    M = S // block
    kept_MM = torch.zeros(M, M, dtype=torch.bool, device=q_SHD.device)
    rows = torch.repeat_interleave(torch.arange(M, device=q_SHD.device), inputs["indptr"].long().diff())
    kept_MM[rows, inputs["indices"].long()] = True

    def mask_mod(b, h, q_index, k_index):
        return kept_MM[q_index // block, k_index // block]

    mask = create_block_mask(mask_mod, None, None, S, S, device=q_SHD.device, BLOCK_SIZE=FLEX_BLOCK)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run():
        q_1HSD, k_1HSD, v_1HSD = (inputs[name].transpose(0, 1)[None] for name in ("q_SHD", "k_SHD", "v_SHD"))
        return compiled(q_1HSD, k_1HSD, v_1HSD, block_mask=mask)[0].transpose(0, 1)

    run.plan = "compiled, and its block mask made, outside the timed region"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
