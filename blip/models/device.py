"""Where models run."""

import torch


def prepare_device(threads: int) -> torch.device:
    """Fix the CPU threads of this process and give the device to use: a CUDA GPU where there is one."""
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
