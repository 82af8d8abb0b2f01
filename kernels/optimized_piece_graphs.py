"""The same decode step as CUDA graphs in pieces: what is dense is captured, attention between stays outside.

A graph replays many kernels for the price of one launch, but its shapes are fixed; attention's lengths change at every
step. So each stretch from one attention to the next is a graph, per batch bucket, and all share one memory pool: vLLM's
piecewise CUDA graphs, SGLang's too. Candidates differ in what is captured: plain torch, torch.compile's kernels, or our
own with norm, rotation and activation inside the products (serveproof/ops/gemv.py).
"""

from __future__ import annotations

import importlib.util
import time

import torch

from serveproof.ops import decode_step

READS = ("weights", "h_BE", "k_LBSHD", "v_LBSHD", "position_1", "context", "buckets")
NO_HOST_SYNC = True
WARM_CALLS = 3


def requires(device):
    """None on CUDA; a CPU has nothing to capture."""
    return None if device == "cuda" else "CUDA graphs don't exist on a CPU"


def pieces_of(parts, weights):
    """The dense stretches as functions of (attended, h, position, k, v): (h, q) up to the last, which gives logits.

    k and v are the caches of the layer whose q the piece makes. The first piece has no attention before it.
    """
    last = len(weights.layers)

    def piece(number):
        def call(attended_BE, h_BE, position_1, k_BSHD, v_BSHD):
            if number:
                h_BE = parts.out(attended_BE, h_BE, weights.layers[number - 1])
                h_BE = parts.mlp(h_BE, weights.layers[number - 1])
            if number == last:
                return parts.head(h_BE, weights), None
            return h_BE, parts.qkv(h_BE, weights.layers[number], weights, position_1, k_BSHD, v_BSHD)

        return call

    return [piece(number) for number in range(last + 1)]


def plain_step(parts, inputs):
    """The pieces one after another, not captured: what the captured ones compute."""
    attended_BE, h_BE = None, inputs["h_BE"]
    caches = [*zip(inputs["k_LBSHD"], inputs["v_LBSHD"], strict=True), (None, None)]
    for call, (k_BSHD, v_BSHD) in zip(pieces_of(parts, inputs["weights"]), caches, strict=True):
        h_BE, q_BHD = call(attended_BE, h_BE, inputs["position_1"], k_BSHD, v_BSHD)
        if q_BHD is not None:
            attended_BE = decode_step.attend(q_BHD, k_BSHD, v_BSHD, inputs["context"] + 1)
    return h_BE


def bucket_of(batch, buckets):
    """The smallest bucket that holds the batch. ValueError when none does."""
    fitting = [bucket for bucket in buckets if bucket >= batch]
    if not fitting:
        raise ValueError(f"batch {batch} fits none of the buckets {buckets}")
    return min(fitting)


def capture_bucket(calls, inputs, batch, pool):
    """The pieces captured for one batch size: [(graph, q, attended)] and the logits they end in.

    The graphs read the live inputs themselves, of whose batch they take the first `batch` rows.
    """
    weights, position_1 = inputs["weights"], inputs["position_1"]
    captured, h_BE = [], inputs["h_BE"][:batch]
    attended_BE = None
    for number, call in enumerate(calls):
        last = number == len(weights.layers)
        k_BSHD = None if last else inputs["k_LBSHD"][number][:batch]
        v_BSHD = None if last else inputs["v_LBSHD"][number][:batch]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_CALLS):
                call(attended_BE, h_BE, position_1, k_BSHD, v_BSHD)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            h_BE, q_BHD = call(attended_BE, h_BE, position_1, k_BSHD, v_BSHD)
        attended_BE = None
        if not last:
            attended_BE = torch.empty(batch, q_BHD.shape[1] * q_BHD.shape[2], dtype=h_BE.dtype, device=h_BE.device)
        captured.append((graph, q_BHD, attended_BE))
    return captured, h_BE


def build(inputs):
    """The candidates."""
    return {
        "graphs of our kernels": lambda: build_own(inputs),
        "graphs of torch.compile": lambda: build_graphs(inputs, compiled_calls(inputs), attend_torch),
        "graphs of torch": lambda: build_graphs(inputs, pieces_of(decode_step, inputs["weights"]), attend_torch),
    }


def attend_torch(q_BHD, k_BSHD, v_BSHD, length, attended_BE):
    """SDPA over the cache, into the buffer that the next graph reads."""
    attended_BE.copy_(decode_step.attend(q_BHD, k_BSHD, v_BSHD, length))


def build_own(inputs):
    """Pieces of our Triton kernels; attention too, over the cache as pages of one sequence each."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("triton is not installed: it comes with torch for CUDA")
    from serveproof.ops import gemv, paged_decode

    B, device = inputs["h_BE"].shape[0], inputs["h_BE"].device
    lengths_B = torch.full((B,), inputs["context"] + 1, device=device)
    table_BP = torch.arange(B, dtype=torch.int32, device=device)[:, None]
    q_heads, D = inputs["weights"].q_heads, inputs["k_LBSHD"].shape[-1]
    plan = paged_decode.plan_for_lengths(lengths_B, q_heads, D, paged_decode.ONE_CHUNK)

    def attend(q_BHD, k_BSHD, v_BSHD, length, attended_BE):
        paged_decode.paged_decode(
            q_BHD, k_BSHD, v_BSHD, table_BP, lengths_B, plan, out_BHD=attended_BE.view(q_BHD.shape)
        )

    return build_graphs(inputs, pieces_of(gemv, inputs["weights"]), attend)


def compiled_calls(inputs):
    """Pieces by torch.compile; all but the first and last have the same code and shapes, yet weights of their own."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    return [torch.compile(call, dynamic=False) for call in pieces_of(decode_step, inputs["weights"])]


def build_graphs(inputs, calls, attend):
    """Capture every bucket into one pool; run replays the pieces of the batch's bucket, attention between them."""
    batch = inputs["h_BE"].shape[0]
    pool = torch.cuda.graph_pool_handle()
    started = time.perf_counter()
    before_bytes = torch.cuda.memory_reserved()
    buckets = sorted({min(bucket, batch) for bucket in inputs["buckets"]} | {batch}, reverse=True)
    kept = {bucket: capture_bucket(calls, inputs, bucket, pool) for bucket in buckets}
    torch.cuda.synchronize()
    capture_s = time.perf_counter() - started
    pool_bytes = torch.cuda.memory_reserved() - before_bytes
    captured, logits_BV = kept[bucket_of(batch, buckets)]
    caches = list(zip(inputs["k_LBSHD"], inputs["v_LBSHD"], strict=True))
    length = inputs["context"] + 1

    def run():
        for number, (graph, q_BHD, attended_BE) in enumerate(captured):
            graph.replay()
            if q_BHD is not None:
                attend(q_BHD, *caches[number], length, attended_BE)
        return logits_BV

    run.plan = f"{len(captured) * len(kept)} graphs captured outside the timed region"
    figures = {
        "graphs": (len(captured) * len(kept), "graphs", f"{len(captured)} pieces for each of buckets {buckets}"),
        "capture_time": (capture_s, "s", "all graphs, their warm-up calls and compilation that was not cached"),
        "graph_memory": (pool_bytes, "bytes", "reserved while capturing: the shared pool"),
    }
    run.observed = lambda: figures
    run.kept = kept
    return run
