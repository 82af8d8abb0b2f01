"""One block compiled and reused by every layer: the same speed, and a start that doesn't grow with depth.

PyTorch's regional compilation (pytorch.org, recipe 'Reducing torch.compile cold start compilation time with regional
compilation', and the blog's 67.4 to 9.6 s for Flux on an H100): either the repeated module is compiled by itself, or it
is marked as a nested compile region inside a whole-model graph, where it is lowered once.
"""

from __future__ import annotations

import torch

READS = ("model", "x_BSE", "start")


def requires(device):
    """None: torch.compile is there on every device; a compiler that is missing is an error with its own words."""
    return None


def by_block(inputs):
    """Each layer's call through one compiled function: the code and the guards are the same, so it compiles once."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8)
    layers = inputs["model"].layers
    compiled = torch.compile(type(layers[0]).forward, dynamic=False)

    def run():
        x_BSE = inputs["x_BSE"]
        for layer in layers:
            x_BSE = compiled(layer, x_BSE)
        return x_BSE

    return run


def by_region(inputs):
    """The whole model compiled, its layers marked as one nested region."""
    if not hasattr(torch.compiler, "nested_compile_region"):
        raise NotImplementedError(f"torch {torch.__version__} has no torch.compiler.nested_compile_region")
    layers = inputs["model"].layers
    region = torch.compiler.nested_compile_region(type(layers[0]).forward)

    def forward(x_BSE):
        for layer in layers:
            x_BSE = region(layer, x_BSE)
        return x_BSE

    compiled = torch.compile(forward, dynamic=False)
    return lambda: compiled(inputs["x_BSE"])


def metrics(inputs):
    """Start times of the block's compilation."""
    return inputs["start"](lambda: by_block(inputs)(), lambda: inputs["model"](inputs["x_BSE"]))


def build(inputs):
    """The candidates."""
    return {
        "compiled block": lambda: by_block(inputs),
        "nested compile region": lambda: by_region(inputs),
    }
