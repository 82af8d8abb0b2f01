"""Serving a queue of requests by static batching: take a batch, prefill it padded, decode until the longest is done.

What a first server does: the batch's shape never changes, so prompts are padded to the longest and sequences that are
done are computed on until the last one is. All requests are there at the start.

The problem owns a tiny decoder (`Decoder`), so both sides run the same one: the other side gets it with its inputs.
Tokens are fed as they were decided beforehand (their embeddings are an input), so no rounding changes what comes next.

axes: requests, slots, max_prompt, max_output, layers, heads, head_dim, chunk (most prompt tokens a step), dtype.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

READS = ("decoder", "requests", "x_TE", "slots")
WEIGHT_SEED = 7


class Decoder:
    """A few Transformer layers over a KV cache of slots; knows nothing of requests or batches.

    Weights come from one fixed seed. position_PE is added to what is fed, so that order matters.
    """

    def __init__(self, layers, heads, head_dim, positions, device, dtype):
        generator = torch.Generator(device=device).manual_seed(WEIGHT_SEED)
        E = heads * head_dim
        self.heads, self.dtype, self.device = heads, dtype, device

        def normal(*shape):
            return (torch.randn(*shape, generator=generator, device=device) * shape[-1] ** -0.5).to(dtype)

        self.position_PE = torch.randn(positions, E, generator=generator, device=device).to(dtype)
        self.layers = [(normal(3 * E, E), normal(E, E), normal(4 * E, E), normal(E, 4 * E)) for _ in range(layers)]

    def new_cache(self, slots):
        """Keys and values of every layer: (2, L, slots, positions, H, D)."""
        P, E = self.position_PE.shape
        shape = (2, len(self.layers), slots, P, self.heads, E // self.heads)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def step(self, cache, segments, x_NE):
        """Hidden states (N, E) of the fed tokens; `segments` [(slot, first position, count)] in the order of x's rows.

        Segments of one count go through attention together; each token sees its slot's positions up to its own.
        """
        groups, row = {}, 0
        for slot, first, count in segments:
            groups.setdefault(count, []).append((slot, first, row))
            row += count
        parts = []
        for count, group in groups.items():
            slot_G, first_G, row_G = torch.tensor(group).T.to(self.device)
            offset_C = torch.arange(count, device=self.device)
            position_GC = first_G[:, None] + offset_C
            most = max(first for _, first, _ in group) + count
            seen_GCP = torch.arange(most, device=self.device) <= position_GC[..., None]
            parts.append((slot_G, position_GC, (row_G[:, None] + offset_C).flatten(), most, seen_GCP[:, None]))
        x_NE = x_NE.clone()
        for _, position_GC, rows, _, _ in parts:
            x_NE[rows] += self.position_PE[position_GC.flatten()]
        for number, (qkv_w, out_w, up_w, down_w) in enumerate(self.layers):
            qkv_N3HD = F.linear(F.rms_norm(x_NE, x_NE.shape[-1:]), qkv_w).view(len(x_NE), 3, self.heads, -1)
            attended_NE = torch.empty_like(x_NE)
            for slot_G, position_GC, rows, most, seen_G1CP in parts:
                q, k, v = qkv_N3HD[rows].view(*position_GC.shape, 3, self.heads, -1).unbind(2)
                cache[0, number, slot_G[:, None], position_GC] = k
                cache[1, number, slot_G[:, None], position_GC] = v
                k_GPHD, v_GPHD = cache[0, number, slot_G, :most], cache[1, number, slot_G, :most]
                out_GHCD = F.scaled_dot_product_attention(
                    *(t.transpose(1, 2) for t in (q, k_GPHD, v_GPHD)), attn_mask=seen_G1CP
                )
                attended_NE[rows] = out_GHCD.transpose(1, 2).reshape(len(rows), -1)
            x_NE = x_NE + F.linear(attended_NE, out_w)
            x_NE = x_NE + F.linear(F.silu(F.linear(F.rms_norm(x_NE, x_NE.shape[-1:]), up_w)), down_w)
        return x_NE

    def full(self, x_TE, wide):
        """The reference: hidden states of one whole sequence by plain causal attention, in dtype `wide`."""
        x_TE = x_TE.to(wide) + self.position_PE[: len(x_TE)].to(wide)
        later_TT = torch.ones(len(x_TE), len(x_TE), dtype=torch.bool, device=x_TE.device).triu(1)
        for qkv_w, out_w, up_w, down_w in ([w.to(wide) for w in layer] for layer in self.layers):
            q, k, v = F.linear(F.rms_norm(x_TE, x_TE.shape[-1:]), qkv_w).view(len(x_TE), 3, self.heads, -1).unbind(1)
            scores_HTT = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
            weights_HTT = scores_HTT.masked_fill(later_TT, float("-inf")).softmax(-1)
            x_TE = x_TE + F.linear(torch.einsum("hts,shd->thd", weights_HTT, v).reshape(len(x_TE), -1), out_w)
            x_TE = x_TE + F.linear(F.silu(F.linear(F.rms_norm(x_TE, x_TE.shape[-1:]), up_w)), down_w)
        return x_TE


class Clock:
    """When each request's tokens came out: the host waits for the step, as a server that hands tokens out does."""

    def __init__(self, device):
        self.cuda = device == "cuda"
        self.started = time.perf_counter()
        self.times = {}
        self.steps = self.computed = self.useful = 0

    def stepped(self, requests, computed, useful):
        """One step is over that brought a token of each of `requests`."""
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter() - self.started
        for request in requests:
            self.times.setdefault(request, []).append(now)
        self.steps, self.computed, self.useful = self.steps + 1, self.computed + computed, self.useful + useful

    def figures(self):
        """Latency, throughput and waste, as run.observed() gives them.

        time_per_output_token is Orca's normalised latency: a request's whole time over its tokens, waiting included.
        TPOT leaves the time to the first token out.
        """
        first = sorted(times[0] for times in self.times.values())
        whole = [times[-1] / len(times) for times in self.times.values()]
        gaps = [(times[-1] - times[0]) / (len(times) - 1) for times in self.times.values() if len(times) > 1]
        end = max(times[-1] for times in self.times.values())
        tokens = sum(map(len, self.times.values()))
        return {
            "time_per_output_token_ms": (1e3 * sum(whole) / len(whole), "ms", "mean of a request's time / its tokens"),
            "tpot_ms": (1e3 * sum(gaps) / len(gaps), "ms", "mean over requests of (last - first token) / (tokens - 1)"),
            "ttft_p50_ms": (1e3 * first[len(first) // 2], "ms", "from the start: all requests are there"),
            "ttft_p99_ms": (1e3 * first[min(len(first) - 1, int(0.99 * len(first)))], "ms", "the same"),
            "output_throughput": (tokens / end, "tokens/s", "all output tokens over the whole time"),
            "steps": (self.steps, "steps", ""),
            "wasted_tokens": (100 * (1 - self.useful / self.computed), "%", "token positions computed for nothing"),
        }


def draw_requests(axes):
    """[(prompt tokens, output tokens)]: both long-tailed (lognormal), the same for every seed."""
    generator = torch.Generator().manual_seed(2024)
    found = []
    for _ in range(axes["requests"]):
        draws = torch.randn(2, generator=generator).mul(0.9).exp()
        prompt = int((draws[0] * axes["max_prompt"] / 4).round().clamp(1, axes["max_prompt"]))
        found.append((prompt, int((draws[1] * axes["max_output"] / 4).round().clamp(1, axes["max_output"]))))
    return found


def make_inputs(axes, device, seed):
    """The decoder, the requests, and x (T, E): what is fed, request after request, prompt + output - 1 tokens each."""
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    requests = draw_requests(axes)
    E = axes["heads"] * axes["head_dim"]
    fed = sum(prompt + output - 1 for prompt, output in requests)
    positions = axes["max_prompt"] + axes["max_output"]
    return {
        "decoder": Decoder(axes["layers"], axes["heads"], axes["head_dim"], positions, device, dtype),
        "clock": Clock,
        "requests": requests,
        "slots": axes["slots"],
        "chunk": axes["chunk"],
        "x_TE": torch.randn(fed, E, generator=generator, device=device, dtype=dtype),
    }


def reference(inputs):
    """Hidden states of every output position, each request alone; float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["x_TE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, start = [], 0
    for prompt, output in inputs["requests"]:
        fed = prompt + output - 1
        rows.append(inputs["decoder"].full(inputs["x_TE"][start : start + fed], wide)[prompt - 1 :])
        start += fed
    return torch.cat(rows)


def work(axes):
    """The linear layers' FLOPs for each fed token once, and their weights read once: neither schedule can do less."""
    fed = sum(prompt + output - 1 for prompt, output in draw_requests(axes))
    E = axes["heads"] * axes["head_dim"]
    weights = axes["layers"] * 12 * E * E
    return {
        "flops": 2 * weights * fed,
        "bytes": weights * getattr(torch, axes["dtype"]).itemsize,
        "dtype": axes["dtype"],
        "items": sum(output for _, output in draw_requests(axes)),
        "item": "token",
    }


def build(inputs):
    """Batch after batch; `observed` tells of the last call."""
    decoder, requests, x_TE, slots = (inputs[name] for name in READS)
    starts = [0]
    for prompt, output in requests:
        starts.append(starts[-1] + prompt + output - 1)
    device = x_TE.device.type
    told = {}

    def run():
        clock = Clock(device)
        rows = [None] * len(requests)
        for first in range(0, len(requests), slots):
            batch = list(range(first, min(first + slots, len(requests))))
            cache = decoder.new_cache(len(batch))
            longest = max(requests[r][0] for r in batch)
            x_BPE = x_TE.new_zeros(len(batch), longest, x_TE.shape[1])
            for b, r in enumerate(batch):
                x_BPE[b, : requests[r][0]] = x_TE[starts[r] : starts[r] + requests[r][0]]
            hidden = decoder.step(cache, [(b, 0, longest) for b in range(len(batch))], x_BPE.flatten(0, 1))
            for b, r in enumerate(batch):
                rows[r] = [hidden[b * longest + requests[r][0] - 1]]
            clock.stepped(batch, len(batch) * longest, sum(requests[r][0] for r in batch))
            for number in range(1, max(requests[r][1] for r in batch)):
                # who is done is computed on: its last token is fed again
                at = [requests[r][0] + min(number, requests[r][1] - 1) - 1 for r in batch]
                fed = torch.tensor([starts[r] + p for r, p in zip(batch, at, strict=True)], device=device)
                hidden = decoder.step(cache, [(b, p, 1) for b, p in enumerate(at)], x_TE[fed])
                alive = [b for b, r in enumerate(batch) if number < requests[r][1]]
                for b in alive:
                    rows[batch[b]].append(hidden[b])
                clock.stepped([batch[b] for b in alive], len(batch), len(alive))
        told.update(clock.figures())
        return torch.stack([row for request in rows for row in request])

    run.backend = "static batching"
    run.observed = lambda: told
    return run
