"""The same requests by continuous batching with chunked prefill: a slot is refilled the moment its sequence ends.

Iteration-level scheduling: Orca (Yu et al., OSDI 2022). Prompts go in chunks beside the running decodes, so that a long
prompt neither waits for a batch nor makes the others wait: Sarathi-Serve (Agrawal et al., arXiv 2403.02310).
"""

from __future__ import annotations

import torch

READS = ("decoder", "clock", "requests", "starts", "gives", "x_TE", "slots", "budget")


def requires(device):
    """None: a schedule is the host's."""
    return None


def next_step(running, requests, budget):
    """[(request, count)] of one step: every running decode's token, and prompt chunks with what the budget leaves.

    running: request -> [slot, tokens fed so far], in the order of arrival. A prompt's chunk is at least one token as
    long as the budget exceeds the decodes, so every step brings something on.
    """
    left = budget - sum(done >= requests[request][0] for request, (_, done) in running.items())
    chosen = []
    for request, (_, done) in running.items():
        prompt = requests[request][0]
        count = 1 if done >= prompt else min(left, prompt - done)
        if done < prompt:
            left -= count
        if count:
            chosen.append((request, count))
    return chosen


def build(inputs):
    """Step after step; `observed` tells of the last call."""
    decoder, clock_of, requests, starts, gives, x_TE, slots, budget = (inputs[name] for name in READS)
    if budget < slots:
        raise ValueError(f"a budget of {budget} tokens a step is less than the {slots} slots' decodes")
    cache = decoder.new_cache(slots)
    told = {}

    def run():
        clock = clock_of(x_TE.is_cuda)
        out_RE = x_TE.new_empty(gives[-1], x_TE.shape[1])
        waiting, free = list(range(len(requests)))[::-1], list(range(slots))
        running = {}  # request -> [slot, tokens fed so far]
        while waiting or running:
            while waiting and free:
                running[waiting.pop()] = [free.pop(), 0]
            segments, fed, given, moves = [], [], [], []
            for request, count in next_step(running, requests, budget):
                slot, done = running[request]
                segments.append((slot, done, count))
                fed += range(starts[request] + done, starts[request] + done + count)
                running[request][1] = done = done + count
                if done >= requests[request][0]:
                    given.append(request)
                    moves.append([gives[request] + done - requests[request][0], len(fed) - 1])
            hidden_NE = decoder.step(cache, segments, fed, x_TE)
            if moves:
                to_B, from_B = torch.tensor(moves).T.to(x_TE.device)
                out_RE[to_B] = hidden_NE[from_B]
            clock.stepped(given, len(fed), len(fed))
            for request in given:
                if running[request][1] == sum(requests[request]) - 1:
                    free.append(running.pop(request)[0])
        told.update(clock.figures())
        return out_RE

    run.backend = "continuous batching, chunked prefill"
    run.plan = "the KV cache allocated before, as a server does"
    run.observed = lambda: dict(told)
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
