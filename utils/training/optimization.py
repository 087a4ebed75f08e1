"""Optimizers by name, the learning rate and the random seed of each step, and which steps are skipped."""

import argparse
import logging
import math
from collections.abc import Iterable

import torch

from utils.system.errors import InputError, one_line
from utils.training.distributed import Ranks
from utils.training.progress import Progress

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adadelta": torch.optim.Adadelta,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
FUSED = (torch.optim.Adam, torch.optim.SGD)  # have a fused kernel on every device, the fastest
SCHEDULES = ("constant", "cosine", "plateau")
MAX_SEED = 1 << 63
MAX_SKIPPED_IN_A_ROW = 5
NAMES_CHARACTERS = 80  # of a batch's utterances in an error message

log = logging.getLogger("apc")


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer with PyTorch's defaults but for the learning rate."""
    optimizer_class = OPTIMIZERS[name]
    options = {"fused": True} if optimizer_class in FUSED else {}
    return optimizer_class(parameters, lr=learning_rate, **options)


def lr_factor(step: int, schedule: str = "constant", warmup_steps: int = 0, total_steps: float = math.inf) -> float:
    """The factor of a step's learning rate, relative to the peak; a plateau's factor comes on top.

    Args:
        step: steps done before it.
        schedule: one of SCHEDULES. 'cosine' falls along half a cosine, from the warm-up's end to zero after the last
            step.
        warmup_steps: steps over which the rate rises linearly, from a first step whose rate is already above zero.
        total_steps: steps of the whole training.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule != "cosine":
        return 1.0
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class LearningRate:
    """Sets the learning rate of each step of an optimizer by the command line's options, given the batches an epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, args: argparse.Namespace, batches: int) -> None:
        self.optimizer, self.args = optimizer, args
        self.total_steps = min(args.epochs * batches, args.max_steps or math.inf)

    def set(self, step: int, scale: float) -> float:
        """Set and return the rate after this many steps; `scale` is the factor after plateaus."""
        args = self.args
        factor = lr_factor(step, args.lr_schedule, args.warmup_steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * scale * factor
        return group["lr"]


class NonfiniteGuard:
    """Stops before a step whose loss or gradient is NaN or infinite, or skips it: --on_nonfinite."""

    def __init__(self, on_nonfinite: str, progress: Progress, scaler: torch.amp.GradScaler, ranks: Ranks) -> None:
        self.on_nonfinite, self.progress, self.scaler, self.ranks = on_nonfinite, progress, scaler, ranks

    def allows(self, loss: float, norm: float, utterances: list[str]) -> bool:
        """Whether to take a step of this loss and gradient norm on these utterances; InputError to stop."""
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        progress = self.progress
        if math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() >= 1:
            return False  # the gradient scaler tried too large a scale, and has lowered it
        progress.skipped_in_a_row += 1
        names = " ".join(utterances)
        found = f"step {progress.step + 1}: loss {loss}, gradient norm {norm}; its batch of {len(utterances)}:"
        is_skipped = self.on_nonfinite == "skip" and progress.skipped_in_a_row <= MAX_SKIPPED_IN_A_ROW
        log.warning("%s %s %s", "skipped" if is_skipped else "stopped at", found, names)
        if is_skipped:
            return False
        progress.skipped_in_a_row = 0
        advice = f"--on_nonfinite skip skips such batches, at most {MAX_SKIPPED_IN_A_ROW} in a row"
        message = f"{found} {one_line(names, NAMES_CHARACTERS)} (the log has all); {advice}"
        raise self.ranks.exit_together(InputError(message))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for a step on every device, differently on every rank."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % MAX_SEED)
