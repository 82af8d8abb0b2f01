"""The same requests by continuous batching with chunked prefill: a slot is refilled the moment its sequence ends.

Iteration-level scheduling: Orca (Yu et al., OSDI 2022). Prompts go in chunks beside the running decodes, so that a long
prompt neither waits for a batch nor makes the others wait: Sarathi-Serve (Agrawal et al., arXiv 2403.02310).
"""

from __future__ import annotations

import torch

READS = ("decoder", "clock", "requests", "x_TE", "slots", "chunk")


def requires(device):
    """None: a schedule is the host's."""
    return None


def build(inputs):
    """Step after step: every running sequence's next token, and prompt chunks up to the step's budget."""
    decoder, clock_of, requests, x_TE, slots, chunk = (inputs[name] for name in READS)
    starts = [0]
    for prompt, output in requests:
        starts.append(starts[-1] + prompt + output - 1)
    device = x_TE.device.type
    told = {}

    def run():
        clock = clock_of(device)
        rows = [[] for _ in requests]
        cache = decoder.new_cache(slots)
        waiting, free = list(range(len(requests))), list(range(slots))
        running = {}  # request -> [slot, tokens fed so far]
        while waiting or running:
            while waiting and free:
                running[waiting.pop(0)] = [free.pop(), 0]
            budget, segments, fed, gives = chunk, [], [], []
            for request, (slot, done) in running.items():
                prompt = requests[request][0]
                count = 1 if done >= prompt else min(budget, prompt - done)
                if done < prompt:
                    budget -= count
                if not count:
                    continue
                segments.append((slot, done, count))
                fed.append(torch.arange(starts[request] + done, starts[request] + done + count))
                running[request][1] += count
                gives.append(request if done + count >= prompt else None)
            hidden = decoder.step(cache, segments, x_TE[torch.cat(fed).to(device)])
            last = -1
            for request, (_, _, count) in zip(gives, segments, strict=True):
                last += count
                if request is None:
                    continue
                rows[request].append(hidden[last])
                if len(rows[request]) == requests[request][1]:
                    free.append(running.pop(request)[0])
            computed = sum(count for _, _, count in segments)
            clock.stepped([request for request in gives if request is not None], computed, computed)
        told.update(clock.figures())
        return torch.stack([row for request in rows for row in request])

    run.backend = "continuous batching, chunked prefill"
    run.observed = lambda: told
    return run
