"""All that a training run needs to go on as if it had never stopped."""

import random
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from utils.errors import InputError, one_line
from utils.progress import Progress


def random_state() -> dict[str, Any]:
    """The generators of PyTorch (CPU and every CUDA device), Python and NumPy, as tensors and plain containers."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator back where `random_state` found it; CUDA's only where there are as many devices."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


def training_state(progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Where training is, its weights, its optimizer and every random generator, as tensors and plain containers."""
    return {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": random_state(),
    }


def restore_training(state: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a model, its optimizer and every random generator back where `training_state` found them.

    Raises:
        InputError: the state is of something else.
    """
    try:
        progress = Progress(**state["progress"])
        if not all(isinstance(value, int | float) for value in asdict(progress).values()):
            raise TypeError("its progress is not in numbers")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the last saved state is not of this training ({one_line(error, 250)})") from error
    return progress
