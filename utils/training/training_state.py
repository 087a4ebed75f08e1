"""All that a training run needs to go on as if it had never stopped.

No random generator is in it: the order of the data depends on the seed and the epoch alone, and dropout on the seed,
the step and the process alone.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from utils.system.errors import InputError, one_line
from utils.training.progress import Progress

MAX_SEED = 1 << 63


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for a step, on every device: otherwise on every rank."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % MAX_SEED)


def training_state(
    progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """Where training is, its weights, its optimizer and its gradient scaler, as tensors and plain containers."""
    return {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }


def restore_training(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress:
    """Put a model, its optimizer and its gradient scaler back where `training_state` found them.

    Raises:
        InputError: the state is of something else.
    """
    try:
        progress = Progress(**state["progress"])
        _check_numbers(asdict(progress), "progress")
        model.load_state_dict(state["model"])
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise ValueError("its weights are NaN or infinite")
        _load_optimizer(state["optimizer"], optimizer)
        scaler_state = state.get("scaler", {})
        _check_numbers(scaler_state, "gradient scaler")
        scaler.load_state_dict(scaler_state)
        _check_numbers(state.get("points", {}), "points")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the last saved state is not of this training ({one_line(error, 250)})") from error
    return progress


def _check_numbers(values: dict[str, Any], what: str) -> None:
    if not all(isinstance(key, str) and isinstance(value, int | float) for key, value in values.items()):
        raise TypeError(f"its {what} is not in numbers")


def _load_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's state, of which PyTorch itself checks little before the first step."""
    options = optimizer.param_groups[0].keys()
    optimizer.load_state_dict(state)
    if optimizer.param_groups[0].keys() != options or len({frozenset(kept) for kept in optimizer.state.values()}) > 1:
        raise ValueError("its optimizer is of another kind")
    for parameter, kept in optimizer.state.items():
        shapes = {key: tuple(value.shape) for key, value in kept.items() if isinstance(value, torch.Tensor)}
        if not set(shapes.values()) <= {(), tuple(parameter.shape)}:
            raise ValueError(f"its optimizer keeps {shapes} for a weight of shape {tuple(parameter.shape)}")
