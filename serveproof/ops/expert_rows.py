"""Rows of tokens brought together by expert, as the pair moe_grouped_gemm and the engine need them.

E experts, C choices a token, R rows: a token and one of its choices. torch only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def by_expert(ids_TC: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(number token * C + choice of each row, its token, where each expert's rows end (E,)), sorted by expert.

    On the device and in fixed shapes: nothing waits for what the router chose.
    """
    sorted_R, order_R = ids_TC.flatten().sort(stable=True)
    ends_E = torch.searchsorted(sorted_R, torch.arange(experts, device=ids_TC.device), right=True)
    return order_R, order_R // ids_TC.shape[1], ends_E


def grouped_mm() -> Callable[..., torch.Tensor]:
    """torch's grouped product, under the name that this torch has it. NotImplementedError where it has none."""
    found = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if found is None:
        raise NotImplementedError(f"torch {torch.__version__} has no grouped_mm")
    return found
