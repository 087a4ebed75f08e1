"""Optimizers by name, and a step that is left out where the gradient is not finite."""

from collections.abc import Iterable

import torch

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adadelta": torch.optim.Adadelta,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
GUARDED = (torch.optim.Adam, torch.optim.SGD)  # their fused kernels read on the device whether to leave a step out


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer with PyTorch's defaults but for the learning rate."""
    optimizer_class = OPTIMIZERS[name]
    options = {"fused": True} if optimizer_class in GUARDED else {}
    return optimizer_class(parameters, lr=learning_rate, **options)


def step_if_finite(optimizer: torch.optim.Optimizer, values: torch.Tensor) -> None:
    """Take a step, unless one of `values` (the loss and the gradient norm, on the device) is NaN or infinite.

    Adam and SGD are told so on the device, and nothing waits for it; the others need the answer on the host first.
    """
    is_bad = (~values.isfinite().all()).float()
    if isinstance(optimizer, GUARDED):
        optimizer.found_inf = is_bad  # what torch.amp.GradScaler sets for the same purpose
        optimizer.step()
    elif not is_bad:
        optimizer.step()
