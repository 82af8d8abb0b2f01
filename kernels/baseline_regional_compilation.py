"""torch.compile of a whole stack of equal blocks: one graph of all layers, compiled as if each were another.

axes: layers, batch, seq, hidden, ffn, norm, activation, dtype; with q_heads, kv_heads, head_dim a Llama block (rmsnorm,
silu), without them an MLP block (layernorm, gelu). Weights come from a fixed seed, x_BSE from the seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from serveproof.ops.blocks import EPS, make_stack
from serveproof.ops.piece_capture import replayed

PROBE = "alone"  # its metrics are times
WEIGHT_SEED = 20260315
ROPE_THETA = 500_000.0


def weight_shapes(axes):
    """name -> shape of one layer's matrix (out, in)."""
    E, F_ = axes["hidden"], axes["ffn"]
    if "q_heads" not in axes:
        return {"w_up": (F_, E), "w_down": (E, F_)}
    D, H, K = axes["head_dim"], axes["q_heads"], axes["kv_heads"]
    return {"w_qkv": ((H + 2 * K) * D, E), "w_out": (E, H * D), "w_gate_up": (2 * F_, E), "w_down": (E, F_)}


def make_inputs(axes, device, seed):
    """x_BSE standard normal (seed); w_* (L, out, in) of variance 1 / in, norm weights near 1 (fixed seed); RoPE."""
    expected = ("rmsnorm", "silu") if "q_heads" in axes else ("layernorm", "gelu")
    if (axes["norm"], axes["activation"]) != expected:
        raise ValueError(f"norm and activation are {axes['norm']}, {axes['activation']}; this block has {expected}")
    dtype = getattr(torch, axes["dtype"])
    fixed = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
    generator = torch.Generator(device=device).manual_seed(seed)
    L, E = axes["layers"], axes["hidden"]
    inputs = {"heads": axes.get("q_heads", 0), "kv_heads": axes.get("kv_heads", 0)}
    inputs["x_BSE"] = torch.randn(axes["batch"], axes["seq"], E, generator=generator, device=device, dtype=dtype)
    for name, shape in weight_shapes(axes).items():
        inputs[name] = torch.randn(L, *shape, generator=fixed, device=device, dtype=dtype).mul_(shape[1] ** -0.5)
    for name in ("w_norm1", "w_norm2") if inputs["heads"] else ("w_norm",):
        inputs[name] = torch.randn(L, E, generator=fixed, device=device, dtype=dtype).mul_(0.1).add_(1)
    if inputs["heads"]:
        R = axes["head_dim"] // 2
        frequencies_R = ROPE_THETA ** (-torch.arange(R, dtype=torch.float64) / R)
        angles_SR = torch.outer(torch.arange(axes["seq"], dtype=torch.float64), frequencies_R)
        inputs["cos_SR"], inputs["sin_SR"] = (t.to(dtype).to(device) for t in (angles_SR.cos(), angles_SR.sin()))
    return inputs


def reference(inputs):
    """The stack layer by layer in float64 on a CPU, float32 on CUDA, in formulas of its own."""
    wide = torch.float32 if inputs["x_BSE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    x_BSE = inputs["x_BSE"].to(wide)
    for layer in range(inputs["w_down"].shape[0]):
        w = {name: value[layer].to(wide) for name, value in inputs.items() if name.startswith("w_")}
        if not inputs["heads"]:
            centred = x_BSE - x_BSE.mean(-1, keepdim=True)
            h_BSE = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS) * w["w_norm"]
            up_BSF = h_BSE @ w["w_up"].t()
            x_BSE = x_BSE + (up_BSF * 0.5 * (1 + torch.erf(up_BSF * 0.5**0.5))) @ w["w_down"].t()
            continue
        x_BSE = x_BSE + reference_attention(inputs, rms_normed(x_BSE, w["w_norm1"]) @ w["w_qkv"].t()) @ w["w_out"].t()
        gate_BSF, up_BSF = (rms_normed(x_BSE, w["w_norm2"]) @ w["w_gate_up"].t()).chunk(2, dim=-1)
        x_BSE = x_BSE + (F.silu(gate_BSF) * up_BSF) @ w["w_down"].t()
    return x_BSE


def rms_normed(x_BSE, weight_E):
    """x / rms(x) * weight."""
    return x_BSE * torch.rsqrt(x_BSE.square().mean(-1, keepdim=True) + EPS) * weight_E


def reference_attention(inputs, qkv_BSF):
    """Causal attention (B, S, H D) with the scores in memory, RoPE by halves."""
    B, S, _ = qkv_BSF.shape
    H, K = inputs["heads"], inputs["kv_heads"]
    q, k, v = qkv_BSF.view(B, S, H + 2 * K, -1).transpose(1, 2).split((H, K, K), dim=1)
    cos_SR, sin_SR = inputs["cos_SR"].to(q.dtype), inputs["sin_SR"].to(q.dtype)

    def turned(x):
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos_SR - high * sin_SR, high * cos_SR + low * sin_SR), dim=-1)

    k, v = (x.repeat_interleave(H // K, dim=1) for x in (turned(k), v))
    scores = turned(q) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden_SS = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
    return (scores.masked_fill(hidden_SS, float("-inf")).softmax(-1) @ v).transpose(1, 2).reshape(B, S, -1)


def work(axes):
    """2 FLOPs a weight and token, causal attention's half product; weights read once, x read and written once."""
    B, S, E, L = axes["batch"], axes["seq"], axes["hidden"], axes["layers"]
    weights = sum(out * into for out, into in weight_shapes(axes).values())
    attention = 2 * B * axes["q_heads"] * S * S * axes["head_dim"] if "q_heads" in axes else 0
    return {
        "flops": L * (2 * B * S * weights + attention),
        "bytes": (L * weights + 2 * B * S * E) * getattr(torch, axes["dtype"]).itemsize,
        "dtype": axes["dtype"],
        "items": B * S,
        "item": "token",
    }


def metrics(inputs):
    """Cold and warm start, graphs compiled, and eager's time a step."""
    from serveproof.ops.compile_start import figures

    return figures(inputs, lambda: build(inputs), lambda: compile_stack(inputs))


def build(inputs):
    """The whole stack compiled by its first call; on CUDA replayed from a graph, as a server does, so that neither
    side's time is that of a host checking guards."""
    run = replayed(compile_stack(inputs))
    run.backend = "torch.compile of the whole stack"
    return run


def compile_stack(inputs):
    """A closure that compiles the whole stack at its first call."""
    compiled = torch.compile(make_stack(inputs), fullgraph=True, dynamic=False)

    def run():
        with torch.no_grad():
            return compiled(inputs["x_BSE"])

    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
