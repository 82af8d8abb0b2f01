"""Tensor parallel over two gloo processes: the tokens of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from serveproof.engine.config import read_config
from serveproof.engine.loader import load_model, random_model
from serveproof.engine.model import Llama
from serveproof.engine.parallel import Group
from serveproof.errors import UserError
from serveproof.serving_results import TensorParallelRecord
from tests import forked

EVEN = {"vocab_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize(("family", "kv_heads"), [("Llama", 2), ("Qwen3Moe", 1)])
def test_two_ranks_equal_one(family: str, kv_heads: int, tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
    """One KV head of two, or both the only one."""
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24} if "Moe" in family else {}
    directory, _ = tiny_llama(family=family, **EVEN | {"num_key_value_heads": kv_heads}, **more)
    command = (
        "--model", directory, "--check", "--out", tmp_path / "tp.json", "--prefill", 64, "--prompt", 20, "--tokens", 8,
        "--threads", 2,
    )  # fmt: skip
    both = forked.run("scripts/inference_serving_multigpu.py", [command] * 2, tmp_path)
    assert [code for code, _ in both] == [0, 0], both
    record = msgspec.json.decode((tmp_path / "tp.json").read_bytes(), type=TensorParallelRecord)
    assert (record.world, record.backend, record.equal) == (2, "gloo", True)
    assert [share.vocabulary for share in record.shares] == [(0, 48), (48, 96)]
    assert {share.kv_heads for share in record.shares} == {1}
    assert "rank 1 of 2" in both[0][1]


def loads_of(directory: Path) -> tuple[Callable[[Group], Llama], ...]:
    """A rank's share of a checkpoint, and of a model of its shape by a seed."""
    config = read_config(directory / "config.json")
    return (
        lambda group: load_model(directory, group=group),
        lambda group: random_model(config, 3, torch.float32, group=group),
    )


@pytest.mark.parametrize("experts", [False, True])
def test_shares_put_together_are_the_whole(experts: bool, tiny_llama: Callable[..., Any]) -> None:
    """From a checkpoint and from a seed: the ranks' matrices side by side are one rank's."""
    more = {"family": "Mixtral", "num_local_experts": 3} if experts else {}
    directory, _ = tiny_llama(**EVEN, **more)
    for load in loads_of(directory):
        whole = load(Group()).state_dict()
        parts = [load(Group(rank, 2)).state_dict() for rank in range(2)]
        for name, tensor in whole.items():
            pair = [part[name] for part in parts]
            if pair[0].shape == tensor.shape:
                assert all(torch.equal(one, tensor) for one in pair), name
                continue
            (dim,) = [d for d in range(tensor.dim()) if pair[0].shape[d] != tensor.shape[d]]
            if name.endswith("gate_up"):  # gate and up are split each
                found = torch.cat([torch.cat([one.chunk(2, dim)[half] for one in pair], dim) for half in (0, 1)], dim)
            else:
                found = torch.cat(pair, dim)
            assert torch.equal(found, tensor), name


def test_more_ranks_than_kv_heads_hold_the_one_of_their_query_heads(tiny_llama: Callable[..., Any]) -> None:
    directory, _ = tiny_llama(**EVEN)
    for load in loads_of(directory):
        whole = load(Group()).layers[0].self_attn
        for rank, kv_head in enumerate((0, 0, 1, 1)):
            own = load(Group(rank, 4)).layers[0].self_attn
            assert (own.heads, own.kv_heads) == (1, 1)
            assert torch.equal(own.q_proj.weight, whole.q_proj.weight.chunk(4)[rank])
            assert torch.equal(own.k_proj.weight, whole.k_proj.weight.chunk(2)[kv_head])
            assert torch.equal(own.v_proj.weight, whole.v_proj.weight.chunk(2)[kv_head])


def test_tokens_are_compared_in_float32_alone(tmp_path: Path) -> None:
    """On two H100s in bfloat16 they differed, by rounding."""
    command = ("--model", "tiny", "--check", "--dtype", "bf16")
    both = forked.run("scripts/inference_serving_multigpu.py", [command] * 2, tmp_path)
    assert [code for code, _ in both] == [2, 2], both
    line = "--check compares tokens: in bf16 another order of sums may flip one; use --dtype fp32"
    assert [line in said for _, said in both] == [True, False], "rank 0 alone says it"


def test_what_does_not_divide_is_told(tiny_llama: Callable[..., Any]) -> None:
    directory, _ = tiny_llama(num_attention_heads=6, num_key_value_heads=2)
    for world, expected in (
        (4, "num_attention_heads 6 does not divide by 4"),
        (2, "vocab_size 97 does not divide by 2"),
    ):
        with pytest.raises(UserError, match=expected):
            load_model(directory, group=Group(0, world))


def test_a_direct_sum_gathers_columns_too() -> None:
    """Each rank's columns stand where its rank says, and zeros elsewhere; infinities stay what they are."""
    parts = [torch.tensor([[1.0, float("inf")]]), torch.tensor([[-3.0, 4.0]])]
    sent: list[torch.Tensor] = []

    def summed(x: torch.Tensor) -> torch.Tensor:
        sent.append(x.clone())
        return x

    for rank, part in enumerate(parts):
        Group(rank, 2, direct=summed).all_gather(part)
    assert torch.equal(sent[0] + sent[1], torch.cat(parts, dim=-1))
