"""Plain softmax attention: the scores are a matrix in memory, as attention is written from the paper.

Vaswani et al., 'Attention Is All You Need' (arXiv 1706.03762), equation 1. With axes `hidden`, the QKV projection is
part of the work, as in the public B200 record of this pair.

axes: batch, heads, seq, head_dim, causal (bool), dtype; optional hidden (then the input is x and head_dim * heads
must equal hidden).
"""

from __future__ import annotations

import torch

READS = ("q_BSHD", "k_BSHD", "v_BSHD", "x_BSE", "w_EF", "heads", "causal")


def make_inputs(axes, device, seed):
    """q, k, v of shape (B, S, H, D), or x (B, S, E) with the projection w (E, 3E); standard normal, `dtype`.

    A projection leaves the heads beside each other in memory, so that is how q, k and v come.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    B, H, S, D = axes["batch"], axes["heads"], axes["seq"], axes["head_dim"]
    inputs = dict.fromkeys(READS)
    inputs["heads"], inputs["causal"] = H, axes["causal"]
    if "hidden" in axes:
        E = axes["hidden"]
        if H * D != E:
            raise ValueError(f"hidden is {E}, but heads * head_dim is {H * D}")
        inputs["x_BSE"] = torch.randn(B, S, E, generator=generator, device=device, dtype=dtype)
        inputs["w_EF"] = torch.randn(E, 3 * E, generator=generator, device=device, dtype=dtype) * E**-0.5
    else:
        for name in ("q_BSHD", "k_BSHD", "v_BSHD"):
            inputs[name] = torch.randn(B, S, H, D, generator=generator, device=device, dtype=dtype)
    return inputs


def project(inputs):
    """Views q, k, v (B, H, S, D) of what is given, or of x's product with w."""
    if inputs["x_BSE"] is None:
        return tuple(inputs[name].transpose(1, 2) for name in ("q_BSHD", "k_BSHD", "v_BSHD"))
    B, S, E = inputs["x_BSE"].shape
    qkv = (inputs["x_BSE"] @ inputs["w_EF"]).view(B, S, 3, inputs["heads"], E // inputs["heads"])
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def softmax_attention(q_BHSD, k_BHSD, v_BHSD, mask_SS):
    """softmax(q k^T / sqrt(D) + mask) v with the scores in memory, in the inputs' dtype."""
    scores_BHSS = (q_BHSD @ k_BHSD.transpose(-1, -2)) * q_BHSD.shape[-1] ** -0.5
    if mask_SS is not None:
        scores_BHSS = scores_BHSS.masked_fill(mask_SS, float("-inf"))
    return torch.softmax(scores_BHSS, dim=-1) @ v_BHSD


def causal_mask(S, device):
    """True above the diagonal: what a query may not see."""
    return torch.ones(S, S, dtype=torch.bool, device=device).triu(1)


def reference(inputs):
    """The same in float64 on a CPU, float32 on CUDA, head by head so that the scores of a long sequence fit."""
    sample = inputs["x_BSE"] if inputs["x_BSE"] is not None else inputs["q_BSHD"]
    wide = torch.float32 if sample.is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    raised = {k: v.to(wide) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    q_BHSD, k_BHSD, v_BHSD = project(raised)
    B, H, S, _ = q_BHSD.shape
    mask_SS = causal_mask(S, q_BHSD.device) if inputs["causal"] else None
    out_BHSD = torch.empty(q_BHSD.shape, dtype=wide, device=q_BHSD.device)
    for b in range(B):
        for h in range(H):
            out_BHSD[b, h] = softmax_attention(q_BHSD[b, h], k_BHSD[b, h], v_BHSD[b, h], mask_SS)
    return out_BHSD


def work(axes):
    """4 B H S^2 D FLOPs (half when causal), and q, k, v read and out written once; with the projection where it is."""
    B, H, S, D = axes["batch"], axes["heads"], axes["seq"], axes["head_dim"]
    itemsize = getattr(torch, axes["dtype"]).itemsize
    flops = 4 * B * H * S * S * D * (0.5 if axes["causal"] else 1.0)
    moved = 4 * B * H * S * D * itemsize
    if "hidden" in axes:
        E = axes["hidden"]
        flops += 2 * B * S * E * 3 * E
        moved = (2 * B * S * E + 3 * E * E) * itemsize
    return {"flops": flops, "bytes": moved, "dtype": axes["dtype"], "items": B * S, "item": "token"}


def build(inputs):
    """The mask is made once; every call computes scores, softmax and the weighted sum as three passes over memory."""
    sample = inputs["x_BSE"] if inputs["x_BSE"] is not None else inputs["q_BSHD"]
    mask_SS = causal_mask(sample.shape[1], sample.device) if inputs["causal"] else None

    def run():
        return softmax_attention(*project(inputs), mask_SS)

    run.backend = "plain softmax"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
