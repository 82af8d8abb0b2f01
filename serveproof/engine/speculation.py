"""Guessing the next tokens from the text so far: prompt lookup, or n-gram speculation.

The last n tokens are looked for earlier in the sequence; what followed them there is the guess. The model then checks
all guesses in one step and keeps those that it would have chosen itself, so greedy output stays exactly what it was.
Source: Saxena 2023, prompt-lookup-decoding; checking: Leviathan et al., arXiv 2211.17192.
"""

from __future__ import annotations

LONGEST, SHORTEST = 4, 2
LOOK_BACK = 2048  # tokens searched: the cost of a step must not grow with the context without end


def propose(tokens: list[int], count: int) -> tuple[int, ...]:
    """At most `count` tokens that followed where the end of `tokens` last stood before; () where it never did."""
    window = tokens[-LOOK_BACK:]
    for size in range(LONGEST, SHORTEST - 1, -1):
        if len(window) <= size:
            continue
        tail = window[-size:]
        for start in range(len(window) - size - 1, -1, -1):
            if window[start] == tail[0] and window[start : start + size] == tail:
                return tuple(window[start + size : start + size + count])
    return ()
