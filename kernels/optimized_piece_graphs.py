"""One decode step as piecewise CUDA graphs: what lies between attentions is replayed, attention is launched between.

A graph replays its kernels without the host, but fixes their shapes. Attention's change with the sequences' lengths
from step to step; the rest depends on the batch alone. So the dense parts (o_proj, residual, norm, gate and up, SiLU,
down, residual, norm, QKV, RoPE, cache write) are captured once a batch bucket, and attention stays outside: vLLM's
piecewise CUDA graphs ('torch.compile integration', vLLM's design documents). All graphs share one memory pool and
static buffers.

A graph removes the host's time, not the kernels'. So beside the eager kernels the candidates capture pieces compiled by
Inductor, and four fused kernels of our own, with and without programmatic dependent launch and L2 prefetch: after
Hazy Research's megakernel for the same shape ('Look Ma, No Bubbles!', 2025-05), which names what idles between kernels.
"""

from __future__ import annotations

from functools import partial

import torch

from serveproof.ops.decode_step import bucket_of, buffers, sdpa_attention, torch_pieces

NO_HOST_SYNC = True
BUCKETS = (1, 2, 4, 8)
# Attention's launch for a few hundred tokens: programs a row and KV head, tokens a block, warps, stages.
SPLITS_ONE_ROW, SPLITS_MORE_ROWS = 8, 4
ATTENTION_BLOCK, ATTENTION_WARPS, ATTENTION_STAGES = 64, 4, 2


def requires(device):
    """CUDA graphs exist on CUDA alone."""
    return "CUDA graphs don't exist on a CPU" if device == "cpu" else None


def metrics(inputs):
    """Time, memory and number of the graphs for all buckets, of the first candidate; kernels a step by the profiler."""
    from serveproof.ops.profile import count_kernels

    run = fused(inputs, pdl=True, prefetch=True)
    captured = run.captured
    buckets = ", ".join(map(str, BUCKETS))
    figures = {
        "capture": (captured.seconds, "s", f"capturing all pieces for buckets {buckets}; compiling not counted"),
        "graph_pool": (captured.pool_bytes, "bytes", "the allocator's, one pool for all pieces and buckets"),
        "graph_device": (
            captured.device_bytes,
            "bytes",
            "taken on the device by capturing, the driver's own included",
        ),
        "graphs": (captured.count, "graphs", "pieces x buckets"),
    }
    kernels = count_kernels(run)
    return figures | ({"kernels": (kernels, "kernels", "in the graphs and between them, a step")} if kernels else {})


def build(inputs):
    """Candidates, the one with most overlap first."""
    return {
        "fused, pdl, l2 prefetch": partial(fused, inputs, pdl=True, prefetch=True),
        "fused, pdl": partial(fused, inputs, pdl=True, prefetch=False),
        "fused": partial(fused, inputs, pdl=False, prefetch=False),
        "inductor": partial(inductor, inputs),
        "eager kernels": partial(eager, inputs),
    }


def captured_step(inputs, held, pieces_of, buckets, attention):
    """run(): embeddings into the static rows, then piece, attention, piece, ... of the batch's bucket.

    attention(): untimed set-up after the capture, returns a call that takes the number of a layer.
    """
    from serveproof.ops.piece_capture import capture

    captured = capture(pieces_of, buckets)
    attend = attention()
    B = inputs["x_BE"].shape[0]
    x_BE, logits_BV = held["x_BE"][:B], held["logits_BV"][:B]
    first, *others = (graph.replay for graph in captured.graphs[bucket_of(B, buckets)])

    def run():
        attend_layer = attend()
        x_BE.copy_(inputs["x_BE"])
        first()
        for layer, replay in enumerate(others):
            attend_layer(layer)
            replay()
        return logits_BV

    run.captured, run.keep = captured, held
    run.plan = (
        f"{captured.count} graphs for buckets {', '.join(map(str, sorted(captured.graphs)))} captured before; "
        f"positions and cache slots in device memory, lengths known to the host, as a scheduler leaves them"
    )
    return run


def triton_attention(inputs, held, prefetch):
    """One launch a layer of the split attention kernel, on the stream that is current when the step runs."""
    from serveproof.ops import gemv_pieces, split_attention

    B = inputs["x_BE"].shape[0]
    calls = split_attention.prepare(
        held["q_BHD"][:B], inputs["k_cache_LNKD"], inputs["v_cache_LNKD"], inputs["lengths_B"], inputs["context"],
        held["attention_BHD"][:B], SPLITS_ONE_ROW if B == 1 else SPLITS_MORE_ROWS, ATTENTION_BLOCK, ATTENTION_WARPS,
        ATTENTION_STAGES, inputs["gate_up_LFE"] if prefetch else None, gemv_pieces.GATE_UP_PREFETCH_BYTES,
    )  # fmt: skip

    def attend():
        stream = torch.cuda.current_stream().cuda_stream if inputs["x_BE"].is_cuda else 0
        return lambda layer: calls[layer](stream)

    return attend


def torch_attention(inputs, held):
    """SDPA a layer."""
    calls = sdpa_attention(inputs, held)
    return lambda: lambda layer: calls[layer]()


def fused(inputs, pdl, prefetch):
    """Graphs of serveproof.ops.gemv's kernels, all buckets."""
    from serveproof.ops import gemv, gemv_pieces

    if (pdl or prefetch) and not gemv.is_cuda_90(inputs["x_BE"]):
        raise NotImplementedError("programmatic dependent launch and bulk prefetch need compute capability 9.0")
    held = buffers(inputs, max(BUCKETS))
    choice = gemv_pieces.Choice(pdl=pdl, prefetch=prefetch)
    return captured_step(
        inputs, held, lambda rows: gemv_pieces.pieces(inputs, held, rows, choice), BUCKETS,
        partial(triton_attention, inputs, held, prefetch),
    )  # fmt: skip


def inductor(inputs):
    """Graphs of pieces that Inductor compiled, for the batch's bucket alone: compiling each takes tens of seconds.

    With coordinate descent tuning Inductor turns a product of one row into a reduction, which it can
    fuse with what stands around it (torch/_inductor/decomposition.py, mm).
    """
    bucket = bucket_of(inputs["x_BE"].shape[0], BUCKETS)
    held = buffers(inputs, bucket)
    compiler = partial(torch.compile, dynamic=False, fullgraph=True, options={"coordinate_descent_tuning": bucket == 1})
    return captured_step(
        inputs, held, lambda rows: torch_pieces(inputs, held, rows, compiler), (bucket,),
        partial(triton_attention, inputs, held, False),
    )  # fmt: skip


def eager(inputs):
    """Graphs of the eager kernels, all buckets, and SDPA between them."""
    held = buffers(inputs, max(BUCKETS))
    return captured_step(
        inputs, held, lambda rows: torch_pieces(inputs, held, rows, None), BUCKETS,
        partial(torch_attention, inputs, held),
    )  # fmt: skip


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
