"""When a training run is saved, what is never saved, and how a run takes up where another was saved."""

import logging
import time

import torch
from torch import nn

from utils.system.errors import InputError
from utils.training.arguments import SaveInterval
from utils.training.distributed import Ranks
from utils.training.experiment import Experiment
from utils.training.progress import Progress
from utils.training.training_state import restore_training, training_state

log = logging.getLogger("apc")


class Saves:
    """The saved states of an experiment.

    Args:
        experiment: where they are written; by the first process alone.
        ranks: the processes.
        interval: --save_every.
        model, optimizer, scaler: what is saved, besides the progress.

    Attributes:
        is_good: whether the weights are worth saving.
    """

    def __init__(
        self,
        experiment: Experiment,
        ranks: Ranks,
        interval: SaveInterval,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.experiment, self.ranks, self.interval = experiment, ranks, interval
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.is_good = True
        self._last_step, self._last_time = 0, time.monotonic()

    def is_due(self, progress: Progress) -> bool:
        """Whether --save_every has passed since the last save, by any process's clock."""
        steps, seconds = progress.step - self._last_step, time.monotonic() - self._last_time
        return self.ranks.any(self.interval.is_due(steps, seconds))

    def check_weights(self, progress: Progress) -> None:
        """Raise InputError where a step has made the weights NaN or infinite."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            self.is_good = False
            raise self.ranks.ending(InputError(f"step {progress.step} or one shortly before made the weights NaN or "
                                               "infinite; lower --learning_rate"))  # fmt: skip

    def save(self, progress: Progress) -> None:
        """Save all that resuming needs."""
        self.check_weights(progress)
        state = training_state(progress, self.model, self.optimizer, self.scaler)
        self.experiment.save_state(state, progress.step)
        self._last_step, self._last_time = progress.step, time.monotonic()

    def save_if_good(self, progress: Progress) -> None:
        """Save, unless the weights are not, or may not be, what a run should go on from."""
        try:
            if self.is_good:
                self.save(progress)
        except InputError as error:
            log.warning("%s", error)

    def restore(self) -> Progress:
        """Take up the experiment's last saved state, on every process; at the start where there is none."""
        state = self.ranks.from_first(self.ranks.together(self.experiment.load_state))
        if state is None:
            self.experiment.open_curves(0, {})
            return Progress()
        try:
            progress = restore_training(state, self.model, self.optimizer, self.scaler)
        except InputError as error:
            error = InputError(f"{self.experiment.path}: {error}; --overwrite the experiment")
            raise self.ranks.ending(error) from error
        self.experiment.open_curves(progress.step, state.get("points", {}))
        self._last_step = progress.step
        log.info("epoch %d, batch %d, step %d", progress.epoch, progress.batch, progress.step)
        return progress
