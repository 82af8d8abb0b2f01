"""One decode step of a Llama-shaped model, launched kernel by kernel: about ten launches a layer.

Good eager code: fused qkv and gate_up weights, torch's fused RMSNorm, SDPA with GQA over a cache in place.

axes: batch, context (cached tokens), layers, hidden, q_heads, kv_heads, head_dim, ffn, vocab, buckets, dtype.
"""

from __future__ import annotations

import torch

from serveproof.ops import decode_step as parts

READS = ("weights", "h_BE", "k_LBSHD", "v_LBSHD", "position_1", "context")


def make_inputs(axes, device, seed):
    """h (B, E), the step's embeddings, and k, v caches (L, B, context + 1, KVH, D); weights from a fixed seed.

    The last position of the caches is the step's own to write.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    shape = (axes["layers"], axes["batch"], axes["context"] + 1, axes["kv_heads"], axes["head_dim"])
    inputs = {
        name: torch.randn(*shape, generator=generator, device=device, dtype=dtype) for name in ("k_LBSHD", "v_LBSHD")
    }
    return inputs | {
        "h_BE": torch.randn(axes["batch"], axes["hidden"], generator=generator, device=device, dtype=dtype),
        "weights": parts.make_weights(axes, device, dtype),
        "position_1": torch.tensor([axes["context"]], device=device),
        "context": axes["context"],
        "buckets": axes["buckets"],
    }


def step(weights, h_BE, k_LBSHD, v_LBSHD, position_1, context):
    """Logits (B, V) of one step."""
    for number, layer in enumerate(weights.layers):
        k_BSHD, v_BSHD = k_LBSHD[number], v_LBSHD[number]
        q_BHD = parts.qkv(h_BE, layer, weights, position_1, k_BSHD, v_BSHD)
        h_BE = parts.out(parts.attend(q_BHD, k_BSHD, v_BSHD, context + 1), h_BE, layer)
        h_BE = parts.mlp(h_BE, layer)
    return parts.head(h_BE, weights)


def reference(inputs):
    """The same step in float64 on a CPU, float32 on CUDA, layer by layer so that wide weights fit."""
    wide = torch.float32 if inputs["h_BE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    weights = inputs["weights"]
    h_BE = inputs["h_BE"].to(wide)
    for number, narrow in enumerate(weights.layers):
        layer = parts.Layer(**{name: value.to(wide) for name, value in vars(narrow).items()})
        k_BSHD, v_BSHD = inputs["k_LBSHD"][number].to(wide), inputs["v_LBSHD"][number].to(wide)
        q_BHD = parts.qkv(h_BE, layer, weights, inputs["position_1"], k_BSHD, v_BSHD)
        group = weights.q_heads // weights.kv_heads
        k_BHSD, v_BHSD = (t.transpose(1, 2).repeat_interleave(group, 1) for t in (k_BSHD, v_BSHD))
        scores_BHS = torch.einsum("bhd,bhsd->bhs", q_BHD, k_BHSD) * q_BHD.shape[-1] ** -0.5
        attended_BE = torch.einsum("bhs,bhsd->bhd", scores_BHS.softmax(-1), v_BHSD).flatten(1)
        h_BE = parts.mlp(parts.out(attended_BE, h_BE, layer), layer)
    h_BE = parts.rms_norm(h_BE, weights.norm_E.to(wide))
    return torch.cat([h_BE @ rows.to(wide).T for rows in weights.head.split(16384)], dim=1)


def work(axes):
    """Every weight and every cached key and value read once; 2 FLOPs a weight and row."""
    itemsize = getattr(torch, axes["dtype"]).itemsize
    count = parts.weight_count(axes)
    cached = 2 * axes["layers"] * axes["batch"] * (axes["context"] + 1) * axes["kv_heads"] * axes["head_dim"]
    return {
        "flops": 2 * axes["batch"] * count,
        "bytes": (count + cached) * itemsize,
        "dtype": axes["dtype"],
        "items": axes["batch"],
        "item": "token",
    }


def build(inputs):
    """The step, launched as it is."""

    def run():
        return step(*(inputs[name] for name in READS))

    run.backend = "eager"
    return run
