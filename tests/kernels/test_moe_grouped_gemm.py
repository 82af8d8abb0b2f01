"""The MoE layer: router traffic, both sides, and our Triton kernels in the interpreter, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.ops import moe_workload

PAIR = pairs.load("moe_grouped_gemm")
AXES: dict[str, Any] = {
    "tokens": 20,
    "experts": 8,
    "top_k": 2,
    "hidden": 32,
    "out": 32,
    "traffic": "uniform",
    "dtype": "float32",
}
SHAPES = [
    {},
    {"top_k": 1},
    {"tokens": 1},
    {"traffic": "adversarial"},  # experts without a token
    {"traffic": "adversarial", "experts": 4, "top_k": 1},  # all tokens to one expert
    {"traffic": "zipf", "experts": 5},
    {"traffic": "bursty", "tokens": 33},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_every_side_and_candidate_equals_the_reference(changes: dict[str, Any]) -> None:
    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    reference = PAIR.baseline.reference(made)
    runs = [PAIR.baseline.build(made), *(make() for make in PAIR.optimized.build(made).values())]
    for run in runs:
        torch.testing.assert_close(run().double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", SHAPES)
def test_our_kernels_in_the_interpreter(changes: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("these tensors are the interpreter's")
    from serveproof.ops import moe_gemm

    axes = AXES | changes
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    counts_E, rows_ER, gates_R = moe_gemm.route(made["logits_TE"], axes["top_k"])
    used = [rows_ER[e, :n].tolist() for e, n in enumerate(counts_E.tolist())]
    assert sorted(row for rows in used for row in rows) == list(range(axes["tokens"] * axes["top_k"]))
    expected = made["logits_TE"].softmax(-1).topk(axes["top_k"]).values.flatten()
    torch.testing.assert_close(gates_R, expected)
    tuning = moe_gemm.Tuning(16, 16, 16, 4, 2)
    found = moe_gemm.moe_layer(made["x_TK"], made["w_ENK"], made["logits_TE"], axes["top_k"], tuning)
    torch.testing.assert_close(found.double(), PAIR.baseline.reference(made), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # the interpreter multiplies bfloat16 as integers
@pytest.mark.parametrize("copy_engine", [False, True], ids=["pointers", "descriptor"])
@pytest.mark.parametrize("changes", [{"top_k": 1}, {"traffic": "adversarial"}, {"traffic": "zipf", "experts": 5}])
def test_both_ways_of_loading_weights(changes: dict[str, Any], copy_engine: bool, dtype: str) -> None:
    """moe_layer takes the descriptor only on compute capability 9 and later: here the kernel is launched by itself."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("these tensors are the interpreter's")
    from triton.tools.tensor_descriptor import TensorDescriptor

    from serveproof.ops import moe_gemm

    axes = AXES | changes | {"dtype": dtype}
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    T, E, top_k, K, N = (axes[name] for name in ("tokens", "experts", "top_k", "hidden", "out"))
    counts_E, rows_ER, gates_R = moe_gemm.route(made["logits_TE"], top_k)
    flat = made["w_ENK"].view(E * N, K)
    out_RN = torch.full((T * top_k, N), float("nan"), dtype=flat.dtype)
    weights = TensorDescriptor.from_tensor(flat, [16, 16]) if copy_engine else flat
    most_tiles = triton.cdiv(T * top_k, 16) + min(E, T * top_k)
    moe_gemm._grouped[(most_tiles * (N // 16),)](
        made["x_TK"], flat, weights, out_RN, counts_E, rows_ER, gates_R, T * top_k, K, EXPERTS=E,
        WIDTH=triton.next_power_of_2(E), TOP_K=top_k, K=K, N=N, ROWS=16, COLUMNS=16, DEPTH=16, STAGES=2,
        COPY_ENGINE=copy_engine,
    )  # fmt: skip
    found = out_RN.view(T, top_k, N).double().sum(1)
    tolerance = 1e-4 if dtype == "float32" else 4e-3
    torch.testing.assert_close(found, PAIR.baseline.reference(made), rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph of our kernels needs a GPU")
@pytest.mark.parametrize("changes", [{"top_k": 1}, {"traffic": "adversarial"}, {"traffic": "zipf"}])
def test_a_cuda_graph_of_our_kernels_follows_new_values(changes: dict[str, Any]) -> None:
    from serveproof.ops import moe_gemm

    axes = AXES | {"tokens": 300, "hidden": 128, "out": 512, "dtype": "bfloat16"} | changes
    made = PAIR.baseline.make_inputs(axes, "cuda", 0)

    def run() -> torch.Tensor:
        return moe_gemm.moe_layer(made["x_TK"], made["w_ENK"], made["logits_TE"], axes["top_k"])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_TN = run()
    for name, value in PAIR.baseline.make_inputs(axes, "cuda", 1).items():
        if isinstance(value, torch.Tensor):
            made[name].copy_(value)
    made["logits_TE"].copy_(made["logits_TE"].roll(1, dims=1))  # other experts, so other tiles, in the same graph
    graph.replay()
    torch.testing.assert_close(out_TN.float(), PAIR.baseline.reference(made), rtol=2e-2, atol=2e-2)


def test_our_kernels_refuse_what_they_cannot_take() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from serveproof.ops.moe_gemm import moe_layer

    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    with pytest.raises(NotImplementedError, match="N 32 and K 32 must be multiples of 256 and 64"):
        moe_layer(made["x_TK"], made["w_ENK"], made["logits_TE"], 2)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(moe_workload.KINDS),
    tokens=st.integers(1, 60),
    experts=st.integers(1, 20),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_traffic_is_distinct_whole_and_repeatable(
    kind: str, tokens: int, experts: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    ids_TK = moe_workload.assign(kind, tokens, experts, top_k, seed)
    assert ids_TK.shape == (tokens, top_k)
    assert int(ids_TK.min()) >= 0
    assert int(ids_TK.max()) < experts
    assert all(len(set(row)) == top_k for row in ids_TK.tolist())
    assert torch.equal(ids_TK, moe_workload.assign(kind, tokens, experts, top_k, seed))
    assert int(moe_workload.load_of(ids_TK, experts).rows_E.sum()) == tokens * top_k
    logits_TE = moe_workload.logits_of(ids_TK, experts, torch.Generator().manual_seed(seed + 1))
    assert torch.equal(logits_TE.topk(top_k).indices.sort().values, ids_TK.sort().values)


def test_kinds_are_skewed_in_this_order() -> None:
    loads = [
        moe_workload.load_of(moe_workload.assign(kind, 4096, 32, 2), 32) for kind in ("uniform", "zipf", "adversarial")
    ]
    assert loads[0].imbalance < 1.5 < loads[1].imbalance < loads[2].imbalance
    assert [load.active for load in loads] == [32, 32, 2]
    steeper = moe_workload.load_of(moe_workload.assign("zipf", 4096, 32, 2, exponent=2.0), 32)
    assert steeper.imbalance > loads[1].imbalance


def test_bursts_move() -> None:
    ids_TK = moe_workload.assign("bursty", 1600, 32, 1)
    first, last = (torch.bincount(part.flatten(), minlength=32) for part in (ids_TK[:100], ids_TK[-100:]))
    assert set(first.topk(4).indices.tolist()) != set(last.topk(4).indices.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("even", 4, 4, 1), "kind is 'even'"),
        (("uniform", 0, 4, 1), "tokens is 0"),
        (("uniform", 4, 0, 1), "experts is 0"),
        (("uniform", 4, 4, 5), "top_k is 5"),
        (("zipf", 4, 4, 1, 0, -1.0), "exponent is -1.0"),
        (("zipf", 4, 4, 1, 0, float("nan")), "exponent is nan"),
    ],
)
def test_a_bad_argument_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_workload.assign(*arguments)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 0]], "twice for one token"),
        ([[0, 4]], "reaches from 0 to 4; experts is 4"),
        ([[-1, 0]], "reaches from -1 to 0"),
        ([[0.0, 1.0]], "ids_TK is torch.float32"),
        ([0, 1], "ids_TK is torch.int64 \\(2,\\)"),
    ],
)
def test_ids_that_no_router_gives_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_workload.logits_of(torch.tensor(ids), 4, torch.Generator())
    with pytest.raises(ValueError, match=message):
        moe_workload.load_of(torch.tensor(ids), 4)


def test_gini_of_known_loads() -> None:
    assert moe_workload.load_of(torch.tensor([[0], [1], [2], [3]]), 4).gini == 0
    assert moe_workload.load_of(torch.tensor([[2]] * 8), 4).gini == pytest.approx(0.75)
    assert moe_workload.load_of(torch.tensor([[0], [1], [1], [1]]), 2).gini == pytest.approx(0.25)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), low=st.floats(0, 0.5), step=st.floats(0.7, 1.5))
def test_a_steeper_zipf_is_more_skewed(seed: int, low: float, step: float) -> None:
    gentle, steep = (
        moe_workload.load_of(moe_workload.assign("zipf", 2048, 16, 1, seed, exponent), 16)
        for exponent in (low, low + step)
    )
    assert gentle.gini < steep.gini
    assert gentle.imbalance < steep.imbalance


def test_work_counts_only_experts_that_have_rows() -> None:
    work = PAIR.baseline.work(AXES | {"traffic": "adversarial"})
    assert work["bytes"] == (2 * 32 * 32 + 2 * 20 * 32) * 4 + 4 * 20 * 8
    assert work["flops"] == 2 * 20 * 2 * 32 * 32
