"""Where models run."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_device(threads: int) -> torch.device:
    """Fix the CPU threads of this process and give the device to use: a CUDA GPU where there is one."""
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Give the context in which matrix products are of a precision; weights stay float32.

    They are cast once in it, so it belongs around a batch, not around a step.
    """
    plain = precision == "fp32"  # of which autocast knows nothing
    return torch.autocast(device.type, None if plain else DTYPES[precision], enabled=not plain)
