"""Where a training run is, and all that it needs to continue as if it had never stopped.

<name>__epoch_N.model   the weights after epoch N, of every epoch or the last few: a bare state dict with the released
                        names (and in its metadata the model's configuration, which loading passes over)
<name>__best.model      those of the epoch with the lowest validation loss
<name>__step_N.state    the last two saved states

No random generator is saved: the order of the data depends on the seed and the epoch alone, and dropout on the seed,
the step and the process alone.
"""

import argparse
import logging
import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.system.errors import InputError, is_out_of_memory, one_line
from utils.system.files import atomic_write
from utils.system.untrusted import load_untrusted
from utils.training.arguments import SaveInterval
from utils.training.checkpoints import CONFIG_KEY, describe_config, state_with_config
from utils.training.distributed import Ranks
from utils.training.experiment import Experiment
from utils.training.metrics import check_numbers
from utils.training.optimization import PLATEAU_EPOCHS, PLATEAU_FACTOR

STATES_KEPT = 2
BEFORE_A_STATE = ("__epoch_0", "__epoch_1")  # weights that may be there before the first state is saved
MAX_STATE_BYTES = 1 << 38  # 256 GiB: a model of 20 thousand million parameters and Adam's state of it

log = logging.getLogger("apc")


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


class Checkpointer:
    """Saves a training run every so often, and restores it. Every process calls it; the first one writes.

    `keep` is how many epochs' weights remain, the last ones (None: all), besides the best.
    """

    def __init__(
        self,
        experiment: Experiment,
        ranks: Ranks,
        interval: SaveInterval,
        keep: int | None,
        progress: Progress,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.experiment, self.ranks, self.interval, self.keep = experiment, ranks, interval, keep
        self.progress, self.model, self.optimizer = progress, model, optimizer
        self.parts = {"progress": progress, "model": model, "optimizer": optimizer, "scaler": scaler}
        self.parts["points"] = experiment.curves
        self._last_step, self._last_time = 0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, as tensors and plain containers, and the model's configuration."""
        return {name: part.state_dict() for name, part in self.parts.items()} | {
            CONFIG_KEY: describe_config(self.model)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every part, or raise InputError where the state is of another training.

        Where memory runs out, that is raised.
        """
        try:
            check_numbers(state["scaler"], "gradient scaler")
            for name, part in self.parts.items():
                if name != "scaler" or state[name]:  # on the device before, gradients may have needed none
                    part.load_state_dict(state[name])
            if not self._has_finite_weights():
                raise ValueError("its weights are NaN or infinite")
            _check_optimizer(self.optimizer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = f"the last saved state is not of this training ({one_line(error, 250)})"
            raise InputError(f"{self.experiment.path}: {reason}; --overwrite the experiment") from error

    def is_due(self) -> bool:
        """Whether --save_every has passed since the last save, by any process's clock."""
        steps, seconds = self.progress.step - self._last_step, time.monotonic() - self._last_time
        return self.ranks.any(self.interval.is_due(steps, seconds))

    def save(self) -> None:
        """Save all that resuming needs, flush the curves up to it, and remove files that are too old to keep.

        Raises:
            InputError: the weights are NaN or infinite; the last save stays the last.
        """
        self.check_weights()
        if self.ranks.is_first:
            self.experiment.curves.flush()
            path = self.experiment.path / f"{self.experiment.name}__step_{self.progress.step}.state"
            save_file(path, self.state_dict())
            old = _numbered(self.experiment, "step", "state")[:-STATES_KEPT]
            old += _numbered(self.experiment, "epoch", "model")[: -self.keep] if self.keep else []
            for file in old:
                file.unlink(missing_ok=True)
        self._last_step, self._last_time = self.progress.step, time.monotonic()

    def save_if_finite(self) -> None:
        """Save at the end of a run that was stopped, unless the weights are NaN or infinite."""
        if self._has_finite_weights():
            self.save()
        else:
            log.warning("step %d is not saved: its weights are NaN or infinite", self.progress.step)

    def save_weights(self, tag: str) -> Path:
        """Write <name>__<tag>.model: a bare state dict, on the CPU, with the model's configuration in its metadata."""
        path = self.experiment.path / f"{self.experiment.name}__{tag}.model"
        if self.ranks.is_first:
            save_file(path, state_with_config(self.model))
        return path

    def check_weights(self) -> None:
        """Raise InputError where a step has made the weights NaN or infinite."""
        if not self._has_finite_weights():
            message = f"step {self.progress.step} or one shortly before made the weights NaN or infinite"
            raise self.ranks.exit_together(InputError(f"{message}; lower --learning_rate"))

    def restore(self) -> None:
        """Restore the last saved state on every process, if there is one, and open the curves."""
        state = self.ranks.from_first(self.ranks.run_on_all(load_last_state, self.experiment))
        if state is not None:
            self.ranks.run_on_all(self.load_state_dict, state)
            log.info("epoch %d, batch %d, step %d", self.progress.epoch, self.progress.batch, self.progress.step)
        self._last_step = self.progress.step
        self.experiment.curves.open(self.progress.step, self.progress.epoch - 1)

    def _has_finite_weights(self) -> bool:
        return all(parameter.isfinite().all() for parameter in self.model.parameters())


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write what load_untrusted reads."""
    with atomic_write(path) as file:
        torch.save(content, file)


def load_last_state(experiment: Experiment) -> dict[str, Any] | None:
    """The last saved state, or the one before where the last is damaged; None before there is one.

    Raises:
        InputError: none can be read, or there were some, and only the weights of later epochs are left.
    """
    states = _numbered(experiment, "step", "state")
    for path in reversed(states):
        try:
            state = load_untrusted(path, MAX_STATE_BYTES)
            log.info("resuming from %s", path)
            return state
        except InputError as error:
            log.warning("%s", error)
    if states:
        raise InputError(f"no saved state of {experiment.path} can be read; to train anew, --overwrite the experiment")
    weights = [path for path in _numbered(experiment, "epoch", "model") if not path.stem.endswith(BEFORE_A_STATE)]
    if weights:
        what = f"{weights[-1]} is there, but no saved state (*.state) from which to resume"
        raise InputError(f"{what}: give another --experiment_name, and --init_from these weights, or --overwrite")
    return None


def _numbered(experiment: Experiment, tag: str, suffix: str) -> list[Path]:
    """The files <name>__<tag>_N.<suffix>, oldest first; none on the processes that write nothing."""
    numbered = re.compile(rf"{re.escape(experiment.name)}__{tag}_(\d+)\.{suffix}")
    files = experiment.path.iterdir() if experiment.name else ()
    found = [(int(match[1]), path) for path in files if (match := numbered.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a state was loaded that does not fit, of which PyTorch itself checks little."""
    kinds = {frozenset(kept) for kept in optimizer.state.values()}
    settings = {*optimizer.defaults, "params"}  # another PyTorch may have had more
    if not settings <= optimizer.param_groups[0].keys() or len(kinds) > 1:
        raise ValueError("its optimizer is of another kind")
    for parameter, kept in optimizer.state.items():
        shapes = {key: tuple(value.shape) for key, value in kept.items() if isinstance(value, torch.Tensor)}
        if not set(shapes.values()) <= {(), tuple(parameter.shape)}:
            raise ValueError(f"its optimizer keeps {shapes} for a weight of shape {tuple(parameter.shape)}")
