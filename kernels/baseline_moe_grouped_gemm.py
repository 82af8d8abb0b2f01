"""A mixture-of-experts layer as a Python loop over the experts, as model code is first written.

The loop of Hugging Face's first Mixtral: for each expert that has tokens, find them, gather them, multiply, add the
gated result back. Finding them makes the host wait for the GPU once an expert.

axes: tokens, experts, top_k, hidden (K), out (N), traffic (a kind of serveproof.ops.moe_workload), dtype.
"""

from __future__ import annotations

import torch

from serveproof.ops import moe_workload

READS = ("x_TK", "w_ENK", "logits_TE", "top_k")


def expert_ids(axes):
    """Each token's experts: from the axes alone."""
    return moe_workload.assign(axes["traffic"], axes["tokens"], axes["experts"], axes["top_k"])


def make_inputs(axes, device, seed):
    """x (T, K), expert weights (E, N, K) as Linear stores them, router logits (T, E) float32 that choose expert_ids."""
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    T, E, K, N = axes["tokens"], axes["experts"], axes["hidden"], axes["out"]
    return {
        "x_TK": torch.randn(T, K, generator=generator, device=device, dtype=dtype),
        "w_ENK": torch.randn(E, N, K, generator=generator, device=device, dtype=dtype) * K**-0.5,
        "logits_TE": moe_workload.logits_of(expert_ids(axes), E, generator),
        "top_k": axes["top_k"],
    }


def layer(x_TK, w_ENK, logits_TE, top_k):
    """The loop. Gates are the softmax over all experts (Switch Transformer, arXiv 2101.03961)."""
    gates_TC, ids_TC = logits_TE.softmax(-1).topk(top_k, dim=-1)
    out_TN = torch.zeros(x_TK.shape[0], w_ENK.shape[1], dtype=x_TK.dtype, device=x_TK.device)
    chosen_EC_T = torch.nn.functional.one_hot(ids_TC, w_ENK.shape[0]).permute(2, 1, 0)
    for expert in (chosen_EC_T.sum((1, 2)) > 0).nonzero().flatten().tolist():
        choice, token = torch.where(chosen_EC_T[expert])
        y_RN = (x_TK[token] @ w_ENK[expert].T) * gates_TC[token, choice, None].to(x_TK.dtype)
        out_TN.index_add_(0, token, y_RN)
    return out_TN


def reference(inputs):
    """The same loop in float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["x_TK"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    x_TK, logits_TE = inputs["x_TK"].to(wide), inputs["logits_TE"].to(wide)
    out_TN = torch.zeros(x_TK.shape[0], inputs["w_ENK"].shape[1], dtype=wide, device=x_TK.device)
    gates_TC, ids_TC = logits_TE.softmax(-1).topk(inputs["top_k"], dim=-1)
    for expert in range(inputs["w_ENK"].shape[0]):
        token, choice = torch.where(ids_TC == expert)
        out_TN.index_add_(0, token, x_TK[token] @ inputs["w_ENK"][expert].to(wide).T * gates_TC[token, choice, None])
    return out_TN


def work(axes):
    """2 K N FLOPs a row; the weights of the experts that have rows, x, the logits and the output moved once."""
    itemsize = getattr(torch, axes["dtype"]).itemsize
    T, E, K, N = axes["tokens"], axes["experts"], axes["hidden"], axes["out"]
    active = moe_workload.load_of(expert_ids(axes), E).active
    return {
        "flops": 2 * T * axes["top_k"] * K * N,
        "bytes": (active * K * N + T * K + T * N) * itemsize + 4 * T * E,
        "dtype": axes["dtype"],
        "items": T,
        "item": "token",
    }


def metrics(inputs):
    """How the batch falls on the experts."""
    ids_TC = inputs["logits_TE"].topk(inputs["top_k"], dim=-1).indices.cpu()
    load = moe_workload.load_of(ids_TC, inputs["w_ENK"].shape[0])
    return {
        "active_experts": (load.active, "experts", f"of {inputs['w_ENK'].shape[0]}"),
        "load_imbalance": (load.imbalance, "x", "rows of the busiest expert over the mean"),
    }


def build(inputs):
    """The loop."""

    def run():
        return layer(*(inputs[name] for name in READS))

    run.backend = "a loop over experts"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
