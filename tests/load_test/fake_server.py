"""Takes the server's command line and serves like the null server, as its options make it: what the scripts start in
tests. Four slots; a fair one serves waiting tenants in turn, one by
priority the most urgent."""

from __future__ import annotations

import argparse

import uvloop

from serveproof.load_test.null_server import Behaviour, State, serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--policy", default="first_come")
    parser.add_argument("--max-queue", type=int, default=200)
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--tensor-parallel", type=int)
    parser.add_argument("--no-chunked", action="store_true")
    parser.add_argument("--die", action="store_true")
    arguments = parser.parse_args()
    if arguments.die:
        raise SystemExit("planted: no server today")
    gap_ms = 40 if arguments.no_chunked else 10
    behaviour = Behaviour(first_token_ms=20, gap_ms=gap_ms, slots=4, refuse_beyond=arguments.max_queue)
    if arguments.policy == "fair":
        State.release = take_turns  # type: ignore[method-assign]
    if arguments.policy == "priority":
        State.release = most_urgent  # type: ignore[method-assign]
    uvloop.run(serve(arguments.port, behaviour))


def take_turns(self: State) -> None:
    """The tenant served least comes next."""
    if not self.waiting:
        self.running -= 1
        return
    served = self.__dict__.setdefault("served", {})
    place = min(range(len(self.waiting)), key=lambda i: (served.get(self.waiting[i].asked.user, 0), i))
    chosen = self.waiting.pop(place)
    served[chosen.asked.user] = served.get(chosen.asked.user, 0) + 1
    chosen()


def most_urgent(self: State) -> None:
    """The smallest priority comes next, of equals the first."""
    if not self.waiting:
        self.running -= 1
        return
    place = min(range(len(self.waiting)), key=lambda i: (self.waiting[i].asked.priority, i))
    self.waiting.pop(place)()


if __name__ == "__main__":
    main()
