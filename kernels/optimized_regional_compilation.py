"""One compiled block, reused by every layer: torch.compile on the repeated module instead of the whole model.

Compiling a whole model traces, lowers and generates code for every layer, though the layers are equal. Regional
compilation compiles the block once (block.compile() on each; the second layer finds the first's code, for parameters
are inputs of the compiled code), so a cold start costs one layer's compilation: PyTorch's recipe 'Reducing
torch.compile cold start compilation time with regional compilation'. It moves the start, not the step: the step's time
should stay.
"""

from __future__ import annotations

import torch

from serveproof.ops.blocks import make_stack
from serveproof.ops.piece_capture import replayed


def requires(device):
    """None: torch.compile is part of torch (on a CPU it needs a C++ compiler, for both sides)."""
    return None


def metrics(inputs):
    """Cold and warm start, graphs compiled (1, or the region was not reused), and eager's time a step."""
    from serveproof.ops.compile_start import figures

    return figures(inputs, lambda: build(inputs), lambda: compile_blocks(inputs))


def build(inputs):
    """The blocks compiled as one; on CUDA replayed from a graph, as the other side is."""
    run = replayed(compile_blocks(inputs))
    run.backend = "block.compile(), one code for all layers"
    return run


def compile_blocks(inputs):
    """A closure in which every block has the same compiled code: the first block's call makes it."""
    stack = make_stack(inputs)
    for block in stack.blocks:
        block.compile(fullgraph=True, dynamic=False)

    def run():
        with torch.no_grad():
            return stack(inputs["x_BSE"])

    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
