"""A mixture-of-experts layer as one grouped GEMM: router, permutation and experts without the host in between.

Candidates: torch's grouped_mm between a sort and a scatter, and two kernels of our own in Triton that gather and
scatter inside the GEMM (serveproof/ops/moe_gemm.py; the idea of MegaBlocks, arXiv 2211.15841, and of vLLM's fused_moe).
On a CPU torch's grouped_mm, or rows sorted by expert and one product a contiguous slice.
"""

from __future__ import annotations

import importlib.util

import torch

from serveproof.ops.expert_rows import by_expert, grouped_mm

READS = ("x_TK", "w_ENK", "logits_TE", "top_k")
NO_HOST_SYNC = True


def requires(device):
    """None: every device has a way, and each back end says for itself what it lacks."""
    return None


def build(inputs):
    """The candidates of the inputs' device."""
    if inputs["x_TK"].is_cuda:
        return {"triton grouped": lambda: build_triton(inputs), "torch grouped_mm": lambda: build_grouped_mm(inputs)}
    return {"sorted slices": lambda: build_slices(inputs), "torch grouped_mm": lambda: build_grouped_mm(inputs)}


def sort_by_expert(logits_TE, top_k):
    """(token of each sorted row, its gate, where each expert's rows end): on the device, in fixed shapes."""
    gates_TC, ids_TC = logits_TE.softmax(-1).topk(top_k, dim=-1)
    order_R, token_R, ends_E = by_expert(ids_TC, logits_TE.shape[1])
    return token_R, gates_TC.flatten()[order_R], ends_E


def add_back(out_shape, token_R, y_RN, top_k):
    """Rows to their tokens: each token once when top_k is 1, else summed."""
    if top_k == 1:
        return y_RN.new_empty(out_shape).index_copy_(0, token_R, y_RN)
    return y_RN.new_zeros(out_shape).index_add_(0, token_R, y_RN)


def build_grouped_mm(inputs):
    """torch.nn.functional.grouped_mm over the sorted rows."""
    grouped = grouped_mm()
    x_TK, w_ENK, top_k = inputs["x_TK"], inputs["w_ENK"], inputs["top_k"]

    def run():
        token_R, gate_R, ends_E = sort_by_expert(inputs["logits_TE"], top_k)
        y_RN = grouped(x_TK[token_R], w_ENK.transpose(1, 2), offs=ends_E.int()) * gate_R[:, None].to(x_TK.dtype)
        return add_back((x_TK.shape[0], w_ENK.shape[1]), token_R, y_RN, top_k)

    return run


def build_slices(inputs):
    """On a CPU, where reading the counts costs nothing: one product a contiguous slice of the sorted rows."""
    x_TK, w_ENK, top_k = inputs["x_TK"], inputs["w_ENK"], inputs["top_k"]

    def run():
        token_R, gate_R, ends_E = sort_by_expert(inputs["logits_TE"], top_k)
        x_RK = x_TK[token_R]
        y_RN = x_TK.new_empty(len(token_R), w_ENK.shape[1])
        start = 0
        for expert, end in enumerate(ends_E.tolist()):
            if end > start:
                torch.mm(x_RK[start:end], w_ENK[expert].T, out=y_RN[start:end])
            start = end
        y_RN.mul_(gate_R[:, None])
        return add_back((x_TK.shape[0], w_ENK.shape[1]), token_R, y_RN, top_k)

    return run


def build_triton(inputs):
    """Our two kernels."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("triton is not installed: it comes with torch for CUDA")
    from serveproof.ops.moe_gemm import moe_layer

    def run():
        return moe_layer(*(inputs[name] for name in READS))

    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
