"""KL divergence and top-1 agreement against the unquantized model, token by token.

Of the unquantized model the final hidden states are kept, not the logits: a hundredth of the memory, and its head gives
the same logits again. N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serveproof.accuracy_records import Divergence
from serveproof.bench.windows import Integers, mean_estimate
from serveproof.engine.model import Llama


@dataclass(frozen=True)
class Reference:
    """The unquantized model at every `every`-th scored token: hidden states [N, D] and head [V, D], both float32."""

    hidden_ND: Tensor
    head_VD: Tensor
    every: int

    def logits(self, rows: slice | Tensor) -> Tensor:
        """Logits [n, V] of some of the kept tokens."""
        return F.linear(self.hidden_ND[rows], self.head_VD)


@dataclass
class Scores:
    """Per scored token its NLL in nats, float32; at every `every`-th one KL (nats) and whether the top token agrees."""

    nll_nats: NDArray[np.float32]
    kl_nats: NDArray[np.float32] | None = None
    agrees: NDArray[np.bool_] | None = None
    every: int = 1


def head_of(model: Llama) -> Tensor:
    """The weight of the LM head, float32; a tied model's is its embedding."""
    head = model.lm_head
    weight: Tensor = model.embed_tokens.weight if head is None else head.weight  # type: ignore[assignment]
    return weight.float()


def kl_and_agreement(logits_NV: Tensor, reference_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(reference || other) in nats, float32 [N], and whether the largest logit is the same token's, bool [N]).

    Log-softmax in float32; the sum's rounding could fall below 0, where the divergence can't.
    """
    log_q_NV = logits_NV.float().log_softmax(-1)
    log_p_NV = reference_NV.float().log_softmax(-1)
    kl_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).clamp(min=0)
    return kl_N, log_p_NV.argmax(-1) == log_q_NV.argmax(-1)


def divergence(scores: Scores, window: Integers) -> Divergence | None:
    """Means with their intervals over windows. window: of every scored token. None without a reference, or where the
    tokens that were compared lie in one window."""
    if scores.kl_nats is None or scores.agrees is None:
        return None
    own = window[:: scores.every]
    if len(np.unique(own)) < 2:
        return None
    kl, kl_error = mean_estimate(scores.kl_nats, own, "nats/token")
    agreement, agreement_error = mean_estimate(100.0 * scores.agrees, own, "%")
    return Divergence(kl, kl_error, agreement, agreement_error, tokens=len(own))
