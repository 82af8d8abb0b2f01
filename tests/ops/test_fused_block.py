"""The fused kernels, interpreted or compiled, against the operations that they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from serveproof.engine.model import RMSNorm, apply_rope

pytest.importorskip("triton")
from serveproof.ops import fused_block as fb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts bf16 off instead of rounding, and does not carry when e4m3 rounds up to a power of two.
ROUNDS = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: Triton's interpreter rounds neither bf16 nor e4m3")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=ROUNDS)]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (3, 64)])
def test_add_norm_adds_in_place_and_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    norm = RMSNorm(width, 1e-5).to(DEVICE, dtype)
    norm.weight.data = drawn(width, dtype=dtype, seed=1)
    x, delta = drawn(rows, width, dtype=dtype), drawn(rows, width, dtype=dtype, seed=2)
    summed = x + delta
    out = fb.add_norm(x, delta, norm.weight, 1e-5)
    assert torch.equal(x, summed)
    torch.testing.assert_close(out, norm(summed))
    torch.testing.assert_close(fb.add_norm(x, None, norm.weight, 1e-5), norm(summed))
    assert torch.equal(x, summed), "without a delta nothing is added"


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fb, "SILU_WIDTH", 16)
    x = drawn(3, 2 * 40, dtype=dtype)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(fb.silu_mul(x), F.silu(gate) * up)


def rotated(x_NHE: torch.Tensor, cos_Pf: torch.Tensor, sin_Pf: torch.Tensor, at_N: torch.Tensor) -> torch.Tensor:
    cos, sin = cos_Pf[at_N], sin_Pf[at_N]
    return apply_rope(x_NHE.float(), torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


@pytest.mark.parametrize(("heads", "kv_heads", "E"), [(2, 1, 8), (20, 2, 12), (1, 1, 16)])
@pytest.mark.parametrize("norm", [False, True])
def test_rope_write(heads: int, kv_heads: int, E: int, norm: bool) -> None:
    rows, slots = 3, torch.tensor([5, 0, 9], device=DEVICE)
    positions = torch.tensor([0, 3, 11], device=DEVICE)
    angles = torch.outer(torch.arange(12.0), torch.rand(E // 2)).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    qkv = drawn(rows, (heads + 2 * kv_heads) * E)
    caches = [torch.full((10, kv_heads, E), float("nan"), device=DEVICE) for _ in range(2)]
    weights = (drawn(E, seed=3), drawn(E, seed=4)) if norm else None
    q = fb.rope_write(qkv, cos, sin, positions, slots, heads, *caches, norms=weights, eps=1e-6)
    q0, k0, v0 = qkv.view(rows, -1, E).split((heads, kv_heads, kv_heads), 1)
    if weights:
        q0, k0 = (F.rms_norm(x, (E,), w, 1e-6) for x, w in zip((q0, k0), weights, strict=True))
    torch.testing.assert_close(q, rotated(q0, cos, sin, positions))
    torch.testing.assert_close(caches[0][slots], rotated(k0, cos, sin, positions))
    torch.testing.assert_close(caches[1][slots], v0)
    untouched = [slot for slot in range(10) if slot not in slots.tolist()]
    assert all(cache[untouched].isnan().all() for cache in caches), "only the slots asked for are written"


@ROUNDS
def test_rope_write_to_e4m3_with_a_scale_a_head() -> None:
    heads, kv_heads, E = 2, 2, 8
    qkv = drawn(2, (heads + 2 * kv_heads) * E)
    qkv[0, heads * E] = 1e4  # a key beyond e4m3's range: cut off
    qkv[1, -1] = float("nan")
    still = (torch.ones(1, E // 2, device=DEVICE), torch.zeros(1, E // 2, device=DEVICE))
    caches = [torch.zeros(4, kv_heads, E, dtype=torch.float8_e4m3fn, device=DEVICE) for _ in range(2)]
    scales = tuple(torch.tensor(pair, device=DEVICE) for pair in ([0.5, 2.0], [0.01, 3.0]))
    at = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    fb.rope_write(qkv, *still, at, torch.tensor([3, 1], device=DEVICE), heads, *caches, scales=scales)
    split = qkv.view(2, -1, E).split((heads, kv_heads, kv_heads), 1)[1:]
    for x, cache, scale in zip(split, caches, scales, strict=True):
        wanted = (x / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(cache[[3, 1]].float().nan_to_num(-1e3), wanted.float().nan_to_num(-1e3))
    assert caches[1][1].float().isnan().sum() == 1
    assert float(caches[0][3, 0, 0]) == 448
