"""The fused forward pass against the plain one, through the paged cache; on a GPU, engines against whole passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from serveproof.engine.attention import PagedAttention, Piece, StepTensors
from serveproof.engine.config import parse_config
from serveproof.engine.kv_cache import make_cache
from serveproof.engine.linear import prepare_
from serveproof.engine.loader import load_model, random_model
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with

pytest.importorskip("triton")
from serveproof.engine.fused import FusedForward

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for a CPU")


@ON_CPU
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"family": "Qwen3", "head_dim": 16},
        {"family": "Mixtral", "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ],
    ids=["llama", "qwen3", "mixtral"],
)
@torch.inference_mode()
def test_a_prompt_and_a_decode_equal_the_plain_forward(variant: dict[str, Any], tiny_llama: Callable[..., Any]) -> None:
    model = load_model(tiny_llama(**variant)[0])
    tokens = torch.randint(0, 97, (9,), generator=torch.Generator().manual_seed(1))
    results = []
    for fused in (False, True):
        cache = make_cache(model, 4, 4, torch.float32)
        attention = PagedAttention(cache, model.config.num_attention_heads)
        forward = FusedForward(model, attention, 16) if fused else lambda t, p, a=attention: model(t, p, a)
        found = []
        pages, slots = torch.tensor([2, 1, 3]), torch.tensor([8, 9, 10, 11, 4, 5, 6, 7, 12])
        for rows in (range(8), range(8, 9)):
            at = torch.tensor(list(rows))
            lengths = torch.tensor([9] if len(at) == 1 else [], dtype=torch.int64)
            pieces = [] if len(at) == 1 else [Piece(0, 8, 8, pages[:2])]
            attention.plan(StepTensors(tokens[at], at, slots[at], lengths, pages[None].int(), pieces, pages[:2].int()))
            found.append(forward(tokens[at], at))
        results.append(torch.cat(found))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("decodes", [0, 1])
def test_a_prefill_of_all_pieces_fills_the_rows_after_the_decodes(decodes: int, tiny_llama: Callable[..., Any]) -> None:
    config = load_model(tiny_llama()[0]).config
    head_dim = config.head_dim
    cache = make_cache(load_model(tiny_llama()[0]), 6, 4, torch.float32)
    cache.pool.normal_(generator=torch.Generator().manual_seed(2))
    pieces = [Piece(decodes, 3, 3, torch.tensor([1])), Piece(decodes + 3, 2, 6, torch.tensor([2, 3]))]
    step = StepTensors(
        tokens_N=torch.zeros(decodes + 5, dtype=torch.int64),
        positions_N=torch.zeros(decodes + 5, dtype=torch.int64),
        slots_N=torch.arange(decodes + 5),
        lengths_B=torch.full((decodes,), 7),
        table_BP=torch.tensor([[4, 5]] * decodes, dtype=torch.int32).view(decodes, 2),
        pieces=pieces,
        piece_pages_M=torch.tensor([1, 2, 3], dtype=torch.int32),
    )
    q_NHE = torch.randn(decodes + 5, config.num_attention_heads, head_dim)

    class OneByOne:
        """What flashinfer's wrapper does, by the SDPA that it replaces."""

        def plan(self, counts: list[int], contexts: list[int], pages_M: torch.Tensor) -> None:
            assert (counts, contexts, pages_M.tolist()) == ([3, 2], [3, 6], [1, 2, 3])

        def __call__(self, layer: int, q_NHE: torch.Tensor, out_NHE: torch.Tensor | None = None) -> torch.Tensor:
            parts = q_NHE.split([piece.count for piece in pieces])
            found = torch.cat([plain.piece(layer, q, piece) for q, piece in zip(parts, pieces, strict=True)])
            return found if out_NHE is None else out_NHE.copy_(found)

    plain, replaced = (PagedAttention(cache, config.num_attention_heads) for _ in range(2))
    replaced.prefill = OneByOne()  # type: ignore[assignment]
    for attention in (plain, replaced):
        attention.plan(step)
    torch.testing.assert_close(replaced.read(1, q_NHE), plain.read(1, q_NHE))
    for attention in (plain, replaced):
        given_NHE = torch.full_like(q_NHE, torch.nan)
        assert attention.read(1, q_NHE, given_NHE) is given_NHE
        torch.testing.assert_close(given_NHE, plain.read(1, q_NHE))


SHAPE = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 1024, "hidden_size": 2048, "intermediate_size": 2048,
    "num_hidden_layers": 3, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
}  # fmt: skip
# setting -> how far below the reference's best logit a chosen token may lie, in standard deviations of the logits
GPU_SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "eager": ({"graphs": False, "overlap": False, "fused": False}, 0.1),
    "fused": ({"graphs": False}, 0.1),
    "graphs": ({}, 0.1),
    "swap": ({"blocks": 60, "host_blocks": 40}, 0.1),
    "preemption": ({"blocks": 60}, 0.1),
    "drafts": ({"drafts": 3}, 0.1),
    "compiled": ({"compile_block": True}, 0.1),
    "fp8 weights": ({"weights": "fp8"}, 0.8),
    "fp8 cache": ({"cache_dtype": "fp8"}, 0.4),
}


@ON_GPU
@pytest.mark.parametrize("setting", GPU_SETTINGS)
@torch.inference_mode()
def test_tokens_on_a_gpu_are_those_of_a_whole_forward_pass(setting: str) -> None:
    changes, bound = GPU_SETTINGS[setting]
    generator = torch.Generator().manual_seed(3)
    lengths = (1, 2, 15, 16, 17, 40, 63, 64, 65, 200, 333, 512)
    prompts = [torch.randint(0, 1024, (count,), generator=generator).tolist() for count in lengths]
    exact = random_model(parse_config(SHAPE), 0, torch.bfloat16, "cuda").float()
    model = random_model(parse_config(SHAPE), 0, torch.bfloat16, "cuda")
    prepare_(model, changes.get("weights"))
    settings = Settings(device="cuda", max_model_len=1024, max_running=8, token_budget=256, **changes)
    engine = start_with(model, settings)
    each = [SamplingParams(max_tokens=20 + 3 * index, ignore_eos=True) for index in range(len(prompts))]
    for prompt, done in zip(prompts, engine.generate(prompts, each), strict=True):
        ids = torch.tensor([prompt + done.tokens], device="cuda")
        logits_LV = exact.logits(exact.full(ids)[0])[len(prompt) - 1 : -1]
        chosen_L = logits_LV.gather(1, torch.tensor(done.tokens, device="cuda")[:, None])[:, 0]
        below_L = (logits_LV.max(-1).values - chosen_L) / logits_LV.std(-1)
        assert below_L.max() < bound
    assert engine.snapshot().used_blocks == 0
