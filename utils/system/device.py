"""The device that a script computes on."""

import re

import torch

from utils.system.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device that --device names, CUDA for "auto" where there is one. Raises InputError for an unknown one.

    On a GPU, this process then computes float32 products in float32, as a CPU does and the released code did, not TF32.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InputError("give auto, cpu, cuda or cuda:i", f"--device {name}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"this machine has {torch.cuda.device_count()} CUDA devices", f"--device {name}")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False  # an environment variable may have allowed it
    return device


def jobs_at_once(device: torch.device) -> int:
    """How many small jobs to do at once: one on each core of a CPU, one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1
