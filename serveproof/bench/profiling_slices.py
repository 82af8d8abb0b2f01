"""Who has the time: a trace's window cut into slices, each owned by one thing, so that the shares add up to the whole.

While the device works, the time is the kernel's; while it doesn't, it is that of whatever the host is innermost in. On
a CPU the device never works beside the host, so there all time is the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from serveproof.bench.profiling_trace import CALLS, END, WINDOW, Event, clean
from serveproof.errors import UserError
from serveproof.profile_records import Kind

DEVICE_KINDS: dict[str, Kind] = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
HOST_CATEGORIES = {"cpu_op", "user_annotation", "python_function", "cuda_runtime", "cuda_driver"}
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "StreamWaitValue", "CtxSynchronize")
BLOCKING_COPIES = ("cudaMemcpy", "cuMemcpyDtoH", "cuMemcpyHtoD")
# Operations that read a value, and so wait wherever it lies on a device.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")


@dataclass
class Node:
    """A frame of the call tree: what it is, and the frame around it. `event` is the first event seen in it."""

    kind: Kind
    name: str
    parent: Node | None
    shapes: str = ""
    children: dict[tuple[str, str, str], Node] = field(default_factory=dict)

    def child(self, kind: Kind, name: str, shapes: str = "") -> Node:
        found = self.children.get((kind, name, shapes))
        if found is None:
            found = self.children[kind, name, shapes] = Node(kind, name, self, shapes)
        return found

    def path(self) -> Iterator[Node]:
        """This frame, then the one around it, and so on to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class Slice:
    """Part of the window, in us, and the frame that owns it."""

    start: float
    end: float
    node: Node


@dataclass
class Window:
    """A trace cut up. host: what the host is in, all the time. device: what the device does, while it works.

    owned: both together, without overlap. starts: how often each frame was entered.
    """

    start: float
    end: float
    root: Node
    host: list[Slice]
    device: list[Slice]
    owned: list[Slice]
    starts: dict[int, int]
    thread: tuple[object, object]


def window_of(events: list[Event]) -> Window:
    """The window's slices. UserError where the trace doesn't hold the whole window."""
    frame = next((event for event in events if event.name == WINDOW and event.cat == "user_annotation"), None)
    calls = next((event for event in events if event.name == CALLS and event.cat == "user_annotation"), None)
    if frame is None or calls is None:
        raise UserError("the trace holds no window of calls: it was cut short; it is left out, profile again")
    start, end = calls.ts, calls.ts + calls.dur
    thread = (frame.pid, frame.tid)
    mine = [
        event
        for event in events
        if event.ph == "X"
        and event.cat in HOST_CATEGORIES
        and (event.pid, event.tid) == thread
        and event.ts >= start
        and event.ts + event.dur <= end
        and event.name not in (WINDOW, CALLS)
    ]
    mine.sort(key=lambda event: (event.ts, -event.dur))
    root = Node("range", "the calls", None)
    starts: dict[int, int] = {}
    launched: dict[object, Node] = {}
    host = list(_host_slices(mine, root, start, end, starts, launched))
    device = list(_device_slices(events, root, start, end, starts, launched))
    last = max((one.end for one in device), default=end)
    if last > end:  # the device is still at work when the last call has returned: the host waits for it
        waiting = root.child("wait", END)
        starts[id(waiting)] = 1
        host.append(Slice(end, last, waiting))
        end = last
    return Window(start, end, root, host, device, list(_combined(host, device)), starts, thread)


def kind_of(event: Event) -> Kind:
    """What a host event is."""
    if event.cat == "python_function":
        return "python"
    if event.cat == "user_annotation":
        return "range"
    if event.cat in ("cuda_runtime", "cuda_driver"):
        return "wait" if event.name.endswith(WAITS) or event.name in BLOCKING_COPIES else "launch"
    return "operation"


def shapes_of(event: Event) -> str:
    """The shapes of an operation's tensors: `[8, 512] [512, 64]`; scalars and what isn't told are left out."""
    return " ".join(str(shape) for shape in _flat(event.args.get("Input Dims", [])))


def _flat(dims: object) -> Iterator[list[int]]:
    if isinstance(dims, list) and dims:
        if all(isinstance(one, int) for one in dims):
            yield dims
        else:
            for one in dims:
                yield from _flat(one)


def _host_slices(
    events: list[Event], root: Node, start: float, end: float, starts: dict[int, int], launched: dict[object, Node]
) -> Iterator[Slice]:
    """What the host is innermost in, from start to end without a hole; fills `starts` and `launched` on the way."""
    stack: list[tuple[float, Node]] = [(end, root)]
    now = start
    for event in events:
        while len(stack) > 1 and stack[-1][0] <= event.ts:
            ended, node = stack.pop()
            if ended > now:
                yield Slice(now, ended, node)
                now = ended
        if event.ts > now:
            yield Slice(now, event.ts, stack[-1][1])
            now = event.ts
        node = stack[-1][1].child(kind_of(event), clean(event.name), shapes_of(event))
        starts[id(node)] = starts.get(id(node), 0) + 1
        if "correlation" in event.args:
            launched[event.args["correlation"]] = node
        # A clock that is read twice in a tick can put a child's end a hair behind its parent's.
        stack.append((min(event.ts + event.dur, stack[-1][0]), node))
    while stack:
        ended, node = stack.pop()
        if ended > now:
            yield Slice(now, ended, node)
            now = ended


def _device_slices(
    events: list[Event], root: Node, start: float, end: float, starts: dict[int, int], launched: dict[object, Node]
) -> Iterator[Slice]:
    """What the device does; where two kernels overlap, the time is that of the one that started first."""
    mine = sorted((one for one in events if one.ph == "X" and one.cat in DEVICE_KINDS), key=lambda one: one.ts)
    now = start
    for event in mine:
        around = launched.get(event.args.get("correlation"))
        if around is None and not start <= event.ts < end:
            continue
        node = (around or root).child(DEVICE_KINDS[event.cat], clean(event.name))
        starts[id(node)] = starts.get(id(node), 0) + 1
        begun = max(now, event.ts)
        if event.ts + event.dur > begun:
            now = event.ts + event.dur
            yield Slice(begun, now, node)


def _combined(host: Iterable[Slice], device: list[Slice]) -> Iterator[Slice]:
    """The device's slices, and the host's where the device does nothing."""
    yield from device
    at = 0
    for one in host:
        begun = one.start
        while at < len(device) and device[at].end <= begun:
            at += 1
        look = at
        while begun < one.end:
            if look == len(device) or device[look].start >= one.end:
                yield Slice(begun, one.end, one.node)
                break
            if device[look].start > begun:
                yield Slice(begun, device[look].start, one.node)
            begun = max(begun, device[look].end)
            look += 1
