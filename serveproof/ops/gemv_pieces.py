"""The pieces of a decode step on the fused kernels of serveproof.ops.gemv: four launches between two attentions.

Launch shapes are per kernel and per path (one row, or more on the tensor cores), for hidden 2048 on one H200.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from serveproof.ops import gemv
from serveproof.ops.decode_step import Inputs, positions_and_slots
from serveproof.ops.gemv import Config

MIB = 2**20
ONE_ROW = {
    "qkv": Config(4, 2048, 4),
    "output": Config(4, 2048, 4),
    "gate_up": Config(8, 2048, 8),
    "down": Config(4, 2048, 4),
    "head": Config(8, 2048, 8),
}
MORE_ROWS = {
    "qkv": Config(32, 256, 4, 4),
    "output": Config(16, 256, 4, 6),
    "gate_up": Config(64, 128, 4, 5),
    "down": Config(16, 256, 4, 6),
    "head": Config(64, 128, 4, 5),
}
# Brought into L2 while memory would idle: o_proj's weights around the end of a piece, gate_up's first behind attention.
OUTPUT_PREFETCH_BYTES = 8 * MIB
GATE_UP_PREFETCH_BYTES = 12 * MIB


@dataclass(frozen=True)
class Choice:
    """Which overlaps the kernels use, and their launch shapes."""

    pdl: bool = False
    prefetch: bool = False
    one_row: dict[str, Config] | None = None
    more_rows: dict[str, Config] | None = None

    def configs(self, rows: int) -> dict[str, Config]:
        return (self.one_row or ONE_ROW) if rows == 1 else (self.more_rows or MORE_ROWS)


def after_attention(
    x_BE: Tensor, attention_BF: Tensor, wo_EF: Tensor, norm_E: Tensor, gate_up_FE: Tensor, down_EF: Tensor,
    config: dict[str, Config], pdl: bool,
) -> None:  # fmt: skip
    """The rest of a layer, added to x in place: output projection, norm, gate and up, down."""
    act_BF = x_BE.new_empty((len(x_BE), gate_up_FE.shape[0] // 2))
    gemv.linear(attention_BF, None, wo_EF, x_BE, True, config["output"], pdl)
    gemv.gate_up(x_BE, norm_E, gate_up_FE, act_BF, config["gate_up"], pdl)
    gemv.linear(act_BF, None, down_EF, x_BE, True, config["down"], pdl)


def pieces(inputs: Inputs, held: dict[str, Tensor], rows: int, choice: Choice) -> list[Callable[[], None]]:
    """The L + 1 pieces for `rows` rows, as serveproof.ops.decode_step.torch_pieces has them."""
    x_BE, q_BHD, logits_BV = (held[name][:rows] for name in ("x_BE", "q_BHD", "logits_BV"))
    attention_BF = held["attention_BHD"][:rows].flatten(1)
    positions_B, slots_B = positions_and_slots(inputs, rows)
    layers = len(inputs["gate_up_LFE"])
    config, pdl = choice.configs(rows), choice.pdl

    def before(layer: int) -> None:
        gemv.qkv(
            x_BE, inputs["norm1_LE"][layer], inputs["wqkv_LFE"][layer], inputs["cos_PR"], inputs["sin_PR"],
            positions_B, slots_B, q_BHD, inputs["k_cache_LNKD"][layer], inputs["v_cache_LNKD"][layer], config["qkv"],
            pdl, inputs["wo_LEF"][layer] if choice.prefetch else None, OUTPUT_PREFETCH_BYTES,
        )  # fmt: skip

    def after(layer: int) -> None:
        after_attention(
            x_BE, attention_BF, inputs["wo_LEF"][layer], inputs["norm2_LE"][layer], inputs["gate_up_LFE"][layer],
            inputs["down_LEF"][layer], config, pdl,
        )  # fmt: skip

    def piece(number: int) -> Callable[[], None]:
        def call() -> None:
            if number > 0:
                after(number - 1)
            if number < layers:
                before(number)
            else:
                gemv.linear(x_BE, inputs["norm_E"], inputs["embed_VE"], logits_BV, False, config["head"], pdl)

        return call

    return [piece(number) for number in range(layers + 1)]
