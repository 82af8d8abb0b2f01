"""The pieces of one decode step of a Llama-shaped model, in plain torch: what lies between two attentions.

Shape suffixes: B batch rows, E hidden, H query heads, K key/value heads, D head_dim, R = D / 2, F columns of a
projection, L layers, N slots of the KV cache, P positions, V vocabulary. The cache is flat, (N, K, D) a layer: row b of
the batch owns the slots b * context to (b + 1) * context - 1; the last slot is scratch, where padding rows write.

RMSNorm: Zhang and Sennrich, arXiv 1910.07467. RoPE, halves paired: Su et al., arXiv 2104.09864. SwiGLU: Shazeer,
arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = dict[str, Any]
Call = Callable[[], Any]
EPS = 1e-5  # of RMSNorm, as in Llama 3.2


def bucket_of(batch: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `batch` rows; ValueError when none does."""
    fitting = [bucket for bucket in buckets if bucket >= batch]
    if batch < 1 or not fitting:
        raise ValueError(f"batch {batch} fits no bucket of {sorted(buckets)}")
    return min(fitting)


def rope(x_BHD: Tensor, cos_B1R: Tensor, sin_B1R: Tensor) -> Tensor:
    """Rotate every head by its row's position; the halves of a head are the pairs."""
    low, high = x_BHD.chunk(2, dim=-1)
    return torch.cat((low * cos_B1R - high * sin_B1R, high * cos_B1R + low * sin_B1R), dim=-1)


def norm_qkv_rope_write(
    x_BE: Tensor,
    norm_E: Tensor,
    wqkv_FE: Tensor,
    cos_B1R: Tensor,
    sin_B1R: Tensor,
    slots_B: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    q_BHD: Tensor,
) -> None:
    """RMSNorm, the fused projection, RoPE; q into its buffer, k and v into their slots of the layer's cache."""
    B, H, D = q_BHD.shape
    K = k_NKD.shape[1]
    qkv_BGD = F.linear(F.rms_norm(x_BE, (x_BE.shape[1],), norm_E, EPS), wqkv_FE).view(B, H + 2 * K, D)
    turned_BGD = rope(qkv_BGD[:, : H + K], cos_B1R, sin_B1R)
    q_BHD.copy_(turned_BGD[:, :H])
    k_NKD.index_copy_(0, slots_B, turned_BGD[:, H:])
    v_NKD.index_copy_(0, slots_B, qkv_BGD[:, H + K :])


def output_and_mlp(
    attention_BF: Tensor, x_BE: Tensor, wo_EF: Tensor, norm_E: Tensor, gate_up_FE: Tensor, down_EF: Tensor
) -> None:
    """x += o_proj(attention); x += down(silu(gate) * up) of the norm of x. In place, so the address of x stays."""
    x_BE.addmm_(attention_BF, wo_EF.t())
    gate_BF, up_BF = F.linear(F.rms_norm(x_BE, (x_BE.shape[1],), norm_E, EPS), gate_up_FE).chunk(2, dim=-1)
    x_BE.addmm_(F.silu(gate_BF) * up_BF, down_EF.t())


def norm_head(x_BE: Tensor, norm_E: Tensor, head_VE: Tensor, logits_BV: Tensor) -> None:
    """Final RMSNorm and the tied head into `logits`."""
    torch.mm(F.rms_norm(x_BE, (x_BE.shape[1],), norm_E, EPS), head_VE.t(), out=logits_BV)


def buffers(inputs: Inputs, rows: int) -> dict[str, Tensor]:
    """Static buffers for up to `rows` rows, each a storage of its own: residual, q, attention's output, logits."""
    x_BE = inputs["x_BE"]
    H, D = inputs["q_heads"], inputs["k_cache_LNKD"].shape[3]
    shapes = {
        "x_BE": (rows, x_BE.shape[1]),
        "q_BHD": (rows, H, D),
        "attention_BHD": (rows, H, D),
        "logits_BV": (rows, inputs["embed_VE"].shape[0]),
    }
    return {name: x_BE.new_zeros(shape) for name, shape in shapes.items()}


def positions_and_slots(inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """(positions, cache slots) of the tokens of this step, int64 (rows,); padding: position 0, scratch slot."""
    lengths_B = inputs["lengths_B"]
    B, N = len(lengths_B), inputs["k_cache_LNKD"].shape[1]
    own_B = torch.arange(B, device=lengths_B.device) * inputs["context"] + lengths_B
    return F.pad(lengths_B, (0, rows - B)), F.pad(own_B, (0, rows - B), value=N - 1)


def torch_pieces(inputs: Inputs, held: dict[str, Tensor], rows: int, compiler: Callable[..., Any] | None) -> list[Call]:
    """The L + 1 pieces for `rows` rows: before the first attention, between each two, after the last.

    `compiler` is applied to the three functions above (torch.compile), or None for eager.
    """
    wrap = compiler or (lambda function: function)
    project, mix, head = wrap(norm_qkv_rope_write), wrap(output_and_mlp), wrap(norm_head)
    x_BE, q_BHD, logits_BV = (held[name][:rows] for name in ("x_BE", "q_BHD", "logits_BV"))
    attention_BF = held["attention_BHD"][:rows].flatten(1)
    positions_B, slots_B = positions_and_slots(inputs, rows)
    cos_B1R, sin_B1R = (inputs[name][positions_B][:, None].to(x_BE.dtype) for name in ("cos_PR", "sin_PR"))
    layers = inputs["wqkv_LFE"].shape[0]

    def before(layer: int) -> None:
        project(
            x_BE, inputs["norm1_LE"][layer], inputs["wqkv_LFE"][layer], cos_B1R, sin_B1R, slots_B,
            inputs["k_cache_LNKD"][layer], inputs["v_cache_LNKD"][layer], q_BHD,
        )  # fmt: skip

    def after(layer: int) -> None:
        names = ("wo_LEF", "norm2_LE", "gate_up_LFE", "down_LEF")
        mix(attention_BF, x_BE, *(inputs[name][layer] for name in names))

    def piece(number: int) -> Call:
        def call() -> None:
            if number > 0:
                after(number - 1)
            if number < layers:
                before(number)
            else:
                head(x_BE, inputs["norm_E"], inputs["embed_VE"], logits_BV)

        return call

    return [piece(number) for number in range(layers + 1)]


def sdpa_attention(inputs: Inputs, held: dict[str, Tensor]) -> list[Call]:
    """Per layer a call: SDPA of q over the cached tokens and the new one, into the attention buffer.

    Rows of unequal length are padded to the longest and masked; the lengths are the scheduler's, known to the host.
    """
    lengths_B = inputs["lengths_B"]
    B, context, longest = len(lengths_B), inputs["context"], int(lengths_B.max()) + 1
    mask_B11S = None
    if int(lengths_B.min()) + 1 < longest:
        mask_B11S = (torch.arange(longest, device=lengths_B.device)[None] <= lengths_B[:, None])[:, None, None, :]
    q_BH1D, out_BH1D = held["q_BHD"][:B, :, None], held["attention_BHD"][:B, :, None]

    def layer_call(layer: int) -> Call:
        k_BKSD, v_BKSD = (
            inputs[name][layer, : B * context].view(B, context, *inputs[name].shape[2:])[:, :longest].transpose(1, 2)
            for name in ("k_cache_LNKD", "v_cache_LNKD")
        )

        def call() -> None:
            out_BH1D.copy_(F.scaled_dot_product_attention(q_BH1D, k_BKSD, v_BKSD, attn_mask=mask_B11S, enable_gqa=True))

        return call

    return [layer_call(layer) for layer in range(inputs["k_cache_LNKD"].shape[0])]
