"""One decode step of a Llama-shaped model, every kernel launched by eager PyTorch.

Good eager code: fused QKV and gate-up weights, PyTorch's fused RMSNorm, SDPA over the KV cache. What is left is the
host: it launches some 300 kernels a step, each a few microseconds of Python and driver, while the GPU waits.

axes: batch, layers, hidden, q_heads, kv_heads, head_dim, ffn, vocab, context (slots a sequence), dtype. Weights come
from a fixed seed, as a server's don't change; embeddings of the step's tokens and the KV cache come from the seed.
Lengths are ragged, from context / 2 to context - 1 cached tokens, the same for every seed; a step adds one token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from serveproof.ops.decode_step import EPS, rope

WEIGHT_SEED = 20260315
ROPE_THETA = 500_000.0


def draw_lengths(axes):
    """Cached tokens a row before the step, int64 (B,): context - 1 for the first, the others down to context / 2."""
    generator = torch.Generator().manual_seed(1234)
    lengths_B = torch.randint(axes["context"] // 2, axes["context"], (axes["batch"],), generator=generator)
    lengths_B[0] = axes["context"] - 1
    return lengths_B


def weight_shapes(axes):
    """name -> (shape, fan-in) of every matrix; the head is the embedding, tied."""
    L, E, D, F_ = axes["layers"], axes["hidden"], axes["head_dim"], axes["ffn"]
    HD = axes["q_heads"] * D
    return {
        "wqkv_LFE": ((L, HD + 2 * axes["kv_heads"] * D, E), E),
        "wo_LEF": ((L, E, HD), HD),
        "gate_up_LFE": ((L, 2 * F_, E), E),
        "down_LEF": ((L, E, F_), F_),
        "embed_VE": ((axes["vocab"], E), E),
    }


def make_inputs(axes, device, seed):
    """Weights of variance 1 / fan-in (fixed seed), norm weights near 1, x_BE and caches standard normal (seed).

    k_cache_LNKD, v_cache_LNKD: (layers, batch * context + 1, kv_heads, head_dim); the last slot is scratch.
    """
    dtype = getattr(torch, axes["dtype"])
    fixed = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
    generator = torch.Generator(device=device).manual_seed(seed)
    L, E, B, D = axes["layers"], axes["hidden"], axes["batch"], axes["head_dim"]
    inputs = {"q_heads": axes["q_heads"], "context": axes["context"], "lengths_B": draw_lengths(axes).to(device)}
    for name, (shape, fan_in) in weight_shapes(axes).items():
        inputs[name] = torch.randn(shape, generator=fixed, device=device, dtype=dtype).mul_(fan_in**-0.5)
    for name, shape in (("norm1_LE", (L, E)), ("norm2_LE", (L, E)), ("norm_E", (E,))):
        inputs[name] = torch.randn(shape, generator=fixed, device=device, dtype=dtype).mul_(0.1).add_(1)
    frequencies_R = ROPE_THETA ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angles_PR = torch.outer(torch.arange(axes["context"], dtype=torch.float64), frequencies_R)
    inputs["cos_PR"], inputs["sin_PR"] = angles_PR.cos().float().to(device), angles_PR.sin().float().to(device)
    inputs["x_BE"] = torch.randn(B, E, generator=generator, device=device, dtype=dtype)
    for name in ("k_cache_LNKD", "v_cache_LNKD"):
        shape = (L, B * axes["context"] + 1, axes["kv_heads"], D)
        inputs[name] = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return inputs


def reference(inputs):
    """Logits (B, V) of the same step in float64 on a CPU, float32 on CUDA, one layer's weights widened at a time.

    Row by row, over the cached tokens and the new one's own key and value: the new token's slot is not read.
    """
    wide = torch.float32 if inputs["x_BE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths_B, context, H = inputs["lengths_B"], inputs["context"], inputs["q_heads"]
    L, _, K, D = inputs["k_cache_LNKD"].shape
    cos_B1R, sin_B1R = (inputs[name].to(wide)[lengths_B][:, None] for name in ("cos_PR", "sin_PR"))

    def normed(x_BE, weight_E):
        return x_BE * torch.rsqrt(x_BE.square().mean(-1, keepdim=True) + EPS) * weight_E.to(wide)

    x_BE = inputs["x_BE"].to(wide)
    for layer in range(L):
        qkv = normed(x_BE, inputs["norm1_LE"][layer]) @ inputs["wqkv_LFE"][layer].to(wide).t()
        q_BHD, k_BKD, v_BKD = qkv.view(len(x_BE), H + 2 * K, D).split((H, K, K), dim=1)
        q_BHD, k_BKD = rope(q_BHD, cos_B1R, sin_B1R), rope(k_BKD, cos_B1R, sin_B1R)
        out_BHD = torch.empty_like(q_BHD)
        for b, length in enumerate(lengths_B.tolist()):
            own = slice(b * context, b * context + length)
            k_SHD = torch.cat((inputs["k_cache_LNKD"][layer, own].to(wide), k_BKD[b : b + 1])).repeat_interleave(
                H // K, 1
            )
            v_SHD = torch.cat((inputs["v_cache_LNKD"][layer, own].to(wide), v_BKD[b : b + 1])).repeat_interleave(
                H // K, 1
            )
            scores_HS = torch.einsum("hd,shd->hs", q_BHD[b], k_SHD) * D**-0.5
            out_BHD[b] = torch.einsum("hs,shd->hd", scores_HS.softmax(-1), v_SHD)
        x_BE = x_BE + out_BHD.flatten(1) @ inputs["wo_LEF"][layer].to(wide).t()
        gate_up = normed(x_BE, inputs["norm2_LE"][layer]) @ inputs["gate_up_LFE"][layer].to(wide).t()
        gate_BF, up_BF = gate_up.chunk(2, dim=-1)
        x_BE = x_BE + (F.silu(gate_BF) * up_BF) @ inputs["down_LEF"][layer].to(wide).t()
    return normed(x_BE, inputs["norm_E"]) @ inputs["embed_VE"].to(wide).t()


def work(axes):
    """Every weight read once a step, whatever the batch; keys and values of cached tokens read, of the new written."""
    itemsize = getattr(torch, axes["dtype"]).itemsize
    B, H, K, D = axes["batch"], axes["q_heads"], axes["kv_heads"], axes["head_dim"]
    matrices = sum(torch.Size(shape).numel() for shape, _ in weight_shapes(axes).values())
    norms = (2 * axes["layers"] + 1) * axes["hidden"]
    cached = int(draw_lengths(axes).sum())
    kv = 2 * axes["layers"] * (cached + B) * K * D
    return {
        "flops": 2 * B * matrices + 4 * axes["layers"] * (cached + B) * H * D,
        "bytes": (matrices + norms + kv + B * (axes["hidden"] + axes["vocab"])) * itemsize,
        "dtype": axes["dtype"],
        "items": B,
        "item": "token",
    }


def metrics(inputs):
    """Kernels a step, counted by the profiler; absent where it sees none."""
    from serveproof.ops.profile import count_kernels

    kernels = count_kernels(build(inputs))
    return {"kernels": (kernels, "kernels", "launched one by one by the host, a step")} if kernels else {}


def build(inputs):
    """The step as written for eager PyTorch. Positions, slots and the mask depend on the lengths alone: made once."""
    H, context, lengths_B = inputs["q_heads"], inputs["context"], inputs["lengths_B"]
    L, _, K, D = inputs["k_cache_LNKD"].shape
    B, E = inputs["x_BE"].shape
    longest = int(lengths_B.max()) + 1
    slots_B = torch.arange(B, device=lengths_B.device) * context + lengths_B
    mask_B11S = None
    if int(lengths_B.min()) + 1 < longest:
        mask_B11S = (torch.arange(longest, device=lengths_B.device)[None] <= lengths_B[:, None])[:, None, None, :]

    def cached(name, layer):
        return inputs[name][layer, : B * context].view(B, context, K, D)[:, :longest].transpose(1, 2)

    def run():
        x_BE = inputs["x_BE"]
        cos_B1R, sin_B1R = (inputs[name][lengths_B][:, None].to(x_BE.dtype) for name in ("cos_PR", "sin_PR"))
        for layer in range(L):
            h_BE = F.rms_norm(x_BE, (E,), inputs["norm1_LE"][layer], EPS)
            qkv_BGD = F.linear(h_BE, inputs["wqkv_LFE"][layer]).view(B, H + 2 * K, D)
            turned_BGD = rope(qkv_BGD[:, : H + K], cos_B1R, sin_B1R)
            inputs["k_cache_LNKD"][layer].index_copy_(0, slots_B, turned_BGD[:, H:])
            inputs["v_cache_LNKD"][layer].index_copy_(0, slots_B, qkv_BGD[:, H + K :])
            out_BH1D = F.scaled_dot_product_attention(
                turned_BGD[:, :H, None],
                cached("k_cache_LNKD", layer),
                cached("v_cache_LNKD", layer),
                attn_mask=mask_B11S,
                enable_gqa=True,
            )
            x_BE = x_BE + F.linear(out_BH1D.reshape(B, H * D), inputs["wo_LEF"][layer])
            h_BE = F.rms_norm(x_BE, (E,), inputs["norm2_LE"][layer], EPS)
            gate_BF, up_BF = F.linear(h_BE, inputs["gate_up_LFE"][layer]).chunk(2, dim=-1)
            x_BE = x_BE + F.linear(F.silu(gate_BF) * up_BF, inputs["down_LEF"][layer])
        return F.linear(F.rms_norm(x_BE, (E,), inputs["norm_E"], EPS), inputs["embed_VE"])

    run.backend = "eager, kernel by kernel"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
