"""What the two processes say to each other, as MessagePack: requests one way; what each step brought the other."""

from __future__ import annotations

import msgspec

from serveproof.engine.engine import Output, Snapshot
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings


class Job(msgspec.Struct):
    """How the engine is started: the model's path and how to serve it. threads: of torch, all ranks together."""

    model: str
    settings: Settings
    threads: int = 1
    ranks: int = 1


class Add(msgspec.Struct, tag="add"):
    """Queue a request."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    tenant: str = "default"
    priority: int = 0
    ttft_target_s: float | None = None


class Abort(msgspec.Struct, tag="abort"):
    """Forget requests; those that are not there are no error."""

    request_ids: list[str]


class Turn(msgspec.Struct):
    """What rank 0 tells the others before it takes what the server sent and makes a step. taken_s: when that was.

    brought: a checksum of what the turn before brought rank 0; theirs must be the same.
    """

    messages: list[Add | Abort]
    taken_s: float
    brought: int


class Ready(msgspec.Struct, tag="ready"):
    """The engine can serve. max_model_len: tokens of a prompt with its answer."""

    max_model_len: int


class Failed(msgspec.Struct, tag="failed"):
    """The engine could not start; reason is one line."""

    reason: str


class Batch(msgspec.Struct, tag="batch"):
    """What one step brought, and how the engine stands. Sent without outputs too, every HEARTBEAT_S: it is alive."""

    outputs: list[Output]
    snapshot: Snapshot
    refused: dict[str, str] = {}


HEARTBEAT_S = 0.25
ToEngine = Add | Abort
FromEngine = Ready | Failed | Batch
