"""Where a training run is, and when it ends."""

import argparse
import math
from dataclasses import asdict, dataclass
from typing import Any

PLATEAU_EPOCHS = 3  # without a better validation loss, after which --lr_schedule plateau lowers the rate
PLATEAU_FACTOR = 0.5


@dataclass
class Progress:
    """Where training is.

    Attributes:
        epoch: the current epoch, from 1.
        batch: batches of it that are done.
        step: batches done in all.
        loss_sum, targets: sum over the epoch's batches of loss x target frames, and of target frames.
        best_val_loss, best_epoch: the lowest so far, and its epoch.
        rate_scale, rate_cut_at: the factor of the learning rate after plateaus, and the epoch that last lowered it.
        skipped_in_a_row: batches skipped since the last good one, for a loss or gradient that was not finite.
        closed_at: the step after which --max_steps ended a run within an epoch, and its weights were written.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    best_val_loss: float = math.inf
    best_epoch: int = 0
    rate_scale: float = 1.0
    rate_cut_at: int = 0
    skipped_in_a_row: int = 0
    closed_at: int = -1

    def state_dict(self) -> dict[str, int | float]:
        """Every attribute."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, or raise TypeError."""
        restored = Progress(**state)
        check_numbers(asdict(restored), "progress")
        vars(self).update(vars(restored))

    def add_batch(self) -> None:
        """Count a batch that is done."""
        self.batch, self.step = self.batch + 1, self.step + 1

    def add_loss(self, loss: float, targets: int) -> None:
        """Add a good step's loss, a mean over this many target frames, to the epoch's."""
        self.skipped_in_a_row = 0
        self.loss_sum += loss * targets
        self.targets += targets

    @property
    def mean_loss(self) -> float:
        """The epoch's training loss so far: NaN where every step was skipped."""
        return self.loss_sum / self.targets if self.targets else math.nan

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Whether --patience epochs have passed without a better validation loss."""
        return patience is not None and self.batch == 0 and self.epoch - 1 - self.best_epoch >= patience

    def is_done(self, args: argparse.Namespace) -> bool:
        """Whether --epochs, --max_steps or --patience is reached, and the weights are written."""
        is_closed = self.batch == 0 or self.closed_at == self.step
        is_out_of_steps = is_closed and args.max_steps is not None and self.step >= args.max_steps
        return self.epoch > args.epochs or is_out_of_steps or self.is_out_of_patience(args.patience)

    def end_epoch(self, val_loss: float, lowers_rate: bool) -> bool:
        """Begin the next epoch, with a lower rate after a plateau; returns whether this one's loss is the best."""
        is_best = val_loss < self.best_val_loss
        if is_best:
            self.best_val_loss, self.best_epoch = val_loss, self.epoch
        elif lowers_rate and self.epoch - max(self.best_epoch, self.rate_cut_at) >= PLATEAU_EPOCHS:
            self.rate_scale, self.rate_cut_at = self.rate_scale * PLATEAU_FACTOR, self.epoch
        self.epoch, self.batch, self.loss_sum, self.targets = self.epoch + 1, 0, 0.0, 0
        return is_best


def check_numbers(values: dict[str, Any], name: str) -> None:
    """Raise TypeError where a part of a saved state is not numbers by name."""
    if not all(isinstance(key, str) and isinstance(value, int | float) for key, value in values.items()):
        raise TypeError(f"its {name} is not in numbers")
