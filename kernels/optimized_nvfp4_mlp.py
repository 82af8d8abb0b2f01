"""The same MLP blocks in NVFP4, four bits a weight, on Blackwell's tensor cores through NVIDIA's Transformer Engine.

NVFP4 has a scale for every 16 values (e4m3) and one a tensor. Chips before Blackwell have no product in it: there the
pair is skipped, and tests/kernels/test_nvfp4_mlp.py checks the numerics by emulation (serveproof/ops/nvfp4.py).
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

READS = ("x_MH", "up_LFH", "down_LHF")
LEAST_CAPABILITY = (10, 0)


def requires(device):
    """None on a Blackwell GPU with Transformer Engine; else what is missing."""
    if device != "cuda":
        return "NVFP4 products exist on Blackwell GPUs only (compute capability 10.0 or more); this is a CPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name()
        return f"NVFP4 products need compute capability 10.0 or more; {name} has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("transformer_engine") is None:
        return "transformer-engine is not installed: envs/gpu.txt has it"
    return None


def build(inputs):
    """te.Linear under the NVFP4 recipe; weights are cast at the first call and kept."""
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes

    x_MH = inputs["x_MH"]
    # All three are for training: rounding and the Hadamard transform for gradients, weight scales of 16 x 16 values so
    # that the transposed weight has the same ones. A server has a scale for every 16 values, as the emulation does.
    recipe = recipes.NVFP4BlockScaling(disable_rht=True, disable_stochastic_rounding=True, disable_2d_quantization=True)
    layers = []
    for up_FH, down_HF in zip(inputs["up_LFH"], inputs["down_LHF"], strict=True):
        pair = []
        for weight in (up_FH, down_HF):
            linear = te.Linear(*weight.shape[::-1], bias=False, params_dtype=weight.dtype, device=weight.device)
            with torch.no_grad():
                linear.weight.copy_(weight)
            pair.append(linear)
        layers.append(pair)

    def call(first):
        with torch.no_grad(), te.autocast(enabled=True, recipe=recipe):
            y_MH = x_MH
            for up, down in layers:
                hidden_MF = F.gelu(up(y_MH, is_first_microbatch=first), approximate="tanh")
                y_MH = down(hidden_MF, is_first_microbatch=first)
            return y_MH

    call(True)

    def run():
        return call(False)

    run.backend = "transformer engine nvfp4"
    run.plan = "weights cast at the first call, outside the timed region"
    return run


if __name__ == "__main__":
    import runpy

    runpy.run_module("serveproof.bench.profiling_kernel", run_name="__main__")
