"""Serving a queue of requests by static batching: take a batch, prefill it padded, decode until the longest is done.

What a first server does: the batch's shape never changes, so prompts are padded to the longest and sequences that are
done are computed on until the last one is. All requests are there at the start.

The problem owns a tiny decoder (`Decoder`), so both sides run the same one: the other side gets it with its inputs.
Tokens are fed as they were decided beforehand (their embeddings are an input), so no rounding changes what comes next.

axes: requests, slots, max_prompt, max_output, layers, heads, head_dim, budget (most tokens a mixed step), dtype.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

READS = ("decoder", "requests", "starts", "gives", "x_TE", "slots")
WEIGHT_SEED = 7
# All but cuDNN, which would build a plan for every new shape, and every step has one.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


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
        """Keys and values of every layer (L, 2, slots, positions, H, D): allocated once, as a server does.

        What an earlier sequence left in a slot stays there: the mask hides what a token may not see.
        """
        P, E = self.position_PE.shape
        shape = (len(self.layers), 2, slots, P, self.heads, E // self.heads)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def plan(self, segments):
        """(slot and position of every row, attention's parts, how its rows go back in order): lists to the device.

        Two parts at most: the rows that come alone, and the segments of several, padded to the longest in attention
        only. So a step with chunks of any lengths costs one part's launches more than one without.
        """
        slots, positions, alone, several = [], [], [], []
        for slot, first, count in segments:
            (alone if count == 1 else several).append((slot, first, count, len(slots)))
            slots += [slot] * count
            positions += range(first, first + count)
        parts, order, outputs = [], [0] * len(slots), 0
        for group in filter(None, (alone, several)):
            C = max(count for _, _, count, _ in group)
            most = max(first for _, first, _, _ in group) + C
            rows = [row + min(c, count - 1) for _, _, count, row in group for c in range(C)]
            for g, (_, _, count, row) in enumerate(group):
                order[row : row + count] = range(outputs + g * C, outputs + g * C + count)
            outputs += len(rows)
            flat = torch.tensor(rows + [slot for slot, *_ in group] + [first for _, first, *_ in group])
            rows_GC, slot_G, first_G = flat.to(self.device).split([len(rows), len(group), len(group)])
            last_GC = first_G[:, None] + torch.arange(C, device=self.device)
            most = min(most, len(self.position_PE))
            seen_G1CP = (torch.arange(most, device=self.device) <= last_GC[..., None])[:, None]
            parts.append((rows_GC.view(-1, C), slot_G, most, seen_G1CP))
        order_N = None if order == list(range(outputs)) else torch.tensor(order).to(self.device)
        return slots, positions, parts, order_N

    def step(self, cache, segments, fed, x_TE):
        """Hidden states (N, E) after rows `fed` of x; `segments` [(slot, first position, count)], rows in that order.

        Each token sees its slot's positions up to its own.
        """
        slots, positions, parts, order_N = self.plan(segments)
        fed_N, slot_N, position_N = torch.tensor([fed, slots, positions]).to(self.device)
        x_NE = x_TE[fed_N] + self.position_PE[position_N]
        with sdpa_kernel(ATTENTION) if x_TE.is_cuda else nullcontext():
            return self.through_layers(cache, parts, order_N, slot_N, position_N, x_NE)

    def through_layers(self, cache, parts, order_N, slot_N, position_N, x_NE):
        """Hidden states after all layers; keys and values go into the cache before attention reads it."""
        for layer_cache, (qkv_w, out_w, up_w, down_w) in zip(cache, self.layers, strict=True):
            qkv_NF = F.linear(F.rms_norm(x_NE, x_NE.shape[-1:]), qkv_w)
            qkv_3NHD = qkv_NF.view(len(x_NE), 3, self.heads, -1).transpose(0, 1)
            layer_cache[:, slot_N, position_N] = qkv_3NHD[1:]
            outputs = []
            for rows_GC, slot_G, most, seen_G1CP in parts:
                k_GPHD, v_GPHD = layer_cache[:, slot_G, :most]
                out_GHCD = F.scaled_dot_product_attention(
                    *(t.transpose(1, 2) for t in (qkv_3NHD[0][rows_GC], k_GPHD, v_GPHD)), attn_mask=seen_G1CP
                )
                outputs.append(out_GHCD.transpose(1, 2).reshape(-1, x_NE.shape[1]))
            attended_NE = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
            x_NE = x_NE + F.linear(attended_NE if order_N is None else attended_NE[order_N], out_w)
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

    def __init__(self, cuda):
        self.cuda = cuda
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
        TPOT leaves the time to the first token out; it exists where a request has more than one.
        """
        first = sorted(times[0] for times in self.times.values())
        whole = [times[-1] / len(times) for times in self.times.values()]
        gaps = [(times[-1] - times[0]) / (len(times) - 1) for times in self.times.values() if len(times) > 1]
        end = max(times[-1] for times in self.times.values())
        tokens = sum(map(len, self.times.values()))
        found = {
            "time_per_output_token_ms": (1e3 * sum(whole) / len(whole), "ms", "mean of a request's time / its tokens")
        }
        if gaps:
            note = "mean over requests of (last - first token) / (tokens - 1): decoding alone, no waiting"
            found["tpot_ms"] = (1e3 * sum(gaps) / len(gaps), "ms", note)
        return found | {
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


def fed_tokens(request):
    """How many tokens of a request are fed: the prompt, and all output tokens but the last."""
    return request[0] + request[1] - 1


def first_rows(requests, count_of):
    """Where each request's rows begin in a tensor that has count_of(request) of each, and the total at the end."""
    return [sum(count_of(request) for request in requests[:number]) for number in range(len(requests) + 1)]


def make_inputs(axes, device, seed):
    """The decoder, the requests, and x (T, E): what is fed, request after request, prompt + output - 1 tokens each.

    starts, gives: where a request's rows begin in x and in the output, whose rows are the hidden states of all output
    tokens in the requests' order. The weights come from one fixed seed, as a server's stay what they are.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, axes["dtype"])
    requests = draw_requests(axes)
    E = axes["heads"] * axes["head_dim"]
    fed = sum(map(fed_tokens, requests))
    positions = axes["max_prompt"] + axes["max_output"]
    return {
        "decoder": Decoder(axes["layers"], axes["heads"], axes["head_dim"], positions, device, dtype),
        "clock": Clock,
        "requests": requests,
        "slots": axes["slots"],
        "budget": axes["budget"],
        "starts": first_rows(requests, fed_tokens),
        "gives": first_rows(requests, lambda request: request[1]),
        "x_TE": torch.randn(fed, E, generator=generator, device=device, dtype=dtype),
    }


def reference(inputs):
    """Hidden states of every output position, each request alone; float64 on a CPU, float32 on CUDA."""
    wide = torch.float32 if inputs["x_TE"].is_cuda else torch.float64
    torch.backends.cuda.matmul.allow_tf32 = False
    parts = inputs["x_TE"].split(list(map(fed_tokens, inputs["requests"])))
    pairs = zip(inputs["requests"], parts, strict=True)
    return torch.cat([inputs["decoder"].full(x_TE, wide)[prompt - 1 :] for (prompt, _), x_TE in pairs])


def work(axes):
    """The linear layers' FLOPs for each fed token once, and their weights read once: neither schedule can do less."""
    fed = sum(map(fed_tokens, draw_requests(axes)))
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
    decoder, requests, starts, gives, x_TE, slots = (inputs[name] for name in READS)
    cache = decoder.new_cache(slots)
    told = {}

    def run():
        clock = Clock(x_TE.is_cuda)
        out_RE = x_TE.new_empty(gives[-1], x_TE.shape[1])
        for start in range(0, len(requests), slots):
            batch = list(range(start, min(start + slots, len(requests))))
            longest = max(requests[r][0] for r in batch)
            # a prompt's padding is its last token over again, at positions that no token of the sequence sees
            fed = [starts[r] + min(p, requests[r][0] - 1) for r in batch for p in range(longest)]
            hidden_NE = decoder.step(cache, [(b, 0, longest) for b in range(len(batch))], fed, x_TE)
            last = torch.tensor([[gives[r], b * longest + requests[r][0] - 1] for b, r in enumerate(batch)])
            to_B, from_B = last.T.to(x_TE.device)
            out_RE[to_B] = hidden_NE[from_B]
            clock.stepped(batch, len(fed), sum(requests[r][0] for r in batch))
            for number in range(1, max(requests[r][1] for r in batch)):
                # who is done is computed on: its last token is fed again, and its last state comes out again
                at = [min(number, requests[r][1] - 1) for r in batch]
                segments = [(b, requests[r][0] + n - 1, 1) for b, (r, n) in enumerate(zip(batch, at, strict=True))]
                fed = [starts[r] + requests[r][0] + n - 1 for r, n in zip(batch, at, strict=True)]
                to_B = torch.tensor([gives[r] + n for r, n in zip(batch, at, strict=True)]).to(x_TE.device)
                out_RE[to_B] = decoder.step(cache, segments, fed, x_TE)
                alive = [r for r in batch if number < requests[r][1]]
                clock.stepped(alive, len(batch), len(alive))
        told.update(clock.figures())
        return out_RE

    run.backend = "static batching"
    run.plan = "the KV cache allocated before, as a server does"
    run.observed = lambda: dict(told)
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
