"""One row through the gemv kernels over two ranks' shares, by Triton's interpreter: what the whole layer gives.

The ranks are two threads that take turns, for the interpreter runs one launch at a time.
"""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: the kernels' maths can't be interpreted")

from serveproof.engine.fused import launch_shape, share_after_attention
from serveproof.engine.parallel import Group
from serveproof.ops.gemv import Config
from serveproof.ops.gemv_pieces import ONE_ROW, after_attention

E, F, A = 32, 64, 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for a CPU")
def test_the_shares_of_two_ranks_sum_to_the_whole_layer() -> None:
    torch.manual_seed(2)
    x, attention, norm = torch.randn(1, E), torch.randn(1, A), torch.rand(E) + 0.5
    wo, gate, up, down = torch.randn(E, A), torch.randn(F, E), torch.randn(F, E), torch.randn(E, F)
    config = dict.fromkeys(ONE_ROW, Config(16, 16, 1))
    expected = x.clone()
    after_attention(expected, attention, wo, norm, torch.cat((gate, up)), down, config, False)
    turn, meet, parts = threading.Lock(), threading.Barrier(2, timeout=60), [torch.empty(0)] * 2
    found: list[torch.Tensor] = [torch.empty(0)] * 2

    def rank_of(rank: int) -> None:
        def summed(part: torch.Tensor) -> torch.Tensor:
            parts[rank] = part.clone()
            turn.release()
            meet.wait()
            part.copy_(parts[0] + parts[1])
            meet.wait()
            turn.acquire()
            return part

        a, f = (slice(rank * size // 2, (rank + 1) * size // 2) for size in (A, F))
        own = x.clone()
        with turn:
            share_after_attention(
                own, attention[:, a].contiguous(), wo[:, a].contiguous(), norm, torch.cat((gate[f], up[f])),
                down[:, f].contiguous(), config, False, Group(rank, 2, direct=summed),
            )  # fmt: skip
        found[rank] = own

    threads = [threading.Thread(target=rank_of, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "block_k"),
    [(4096, 2048), (7168, 1024), (14336, 2048), (1536, 512), (2048 + 64, 2048)],
    ids=["whole", "half an 8 B layer", "whole 8 B layer", "small", "no block divides it"],
)
def test_a_block_that_does_not_divide_a_share_is_halved(inputs: int, block_k: int) -> None:
    assert launch_shape(Config(4, 2048, 4), inputs) == Config(4, block_k, 4)
