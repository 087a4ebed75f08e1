"""Where a training run is."""

import math
from dataclasses import dataclass

from utils.training.schedules import PLATEAU_EPOCHS, PLATEAU_FACTOR


@dataclass
class Progress:
    """Where training is. Saved and restored whole.

    Attributes:
        epoch: the epoch under way, from 1.
        batch: batches of it that are done.
        step: batches done in all.
        loss_sum, targets: sum over the epoch's batches of loss x target frames, and of target frames.
        best_val_loss, best_epoch: the lowest so far, and the epoch that ended with it.
        rate_scale, rate_cut_at: what a plateau has left of the learning rate, and the epoch that last cut it.
        skipped_in_a_row: batches left out since the last good one, for a loss or gradient that was not finite.
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

    def add_loss(self, loss: float, targets: int) -> None:
        """Add a good step's loss, a mean over so many target frames, to the epoch's."""
        self.skipped_in_a_row = 0
        self.loss_sum += loss * targets
        self.targets += targets

    @property
    def mean_loss(self) -> float:
        """The epoch's training loss so far: NaN where every step was left out."""
        return self.loss_sum / self.targets if self.targets else math.nan

    def is_out_of_steps(self, max_steps: int | None) -> bool:
        """Whether --max_steps is reached."""
        return max_steps is not None and self.step >= max_steps

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Whether --patience epochs have gone by without a better validation loss."""
        return patience is not None and self.batch == 0 and self.epoch - 1 - self.best_epoch >= patience

    def is_done(self, epochs: int, max_steps: int | None, patience: int | None) -> bool:
        """Whether training is over, and its weights are written."""
        is_closed = self.batch == 0 or self.closed_at == self.step
        is_out_of_steps = is_closed and self.is_out_of_steps(max_steps)
        return self.epoch > epochs or is_out_of_steps or self.is_out_of_patience(patience)

    def note_validation(self, loss: float, cuts_rate: bool) -> bool:
        """Take note of the epoch's validation loss; returns whether it is the best so far.

        Args:
            loss: the validation loss.
            cuts_rate: whether the learning rate is cut where the loss has not got better for PLATEAU_EPOCHS.
        """
        if loss < self.best_val_loss:
            self.best_val_loss, self.best_epoch = loss, self.epoch
            return True
        if cuts_rate and self.epoch - max(self.best_epoch, self.rate_cut_at) >= PLATEAU_EPOCHS:
            self.rate_scale, self.rate_cut_at = self.rate_scale * PLATEAU_FACTOR, self.epoch
        return False

    def next_epoch(self) -> None:
        """Go on to the epoch that follows."""
        self.epoch, self.batch, self.loss_sum, self.targets = self.epoch + 1, 0, 0.0, 0
