"""Saving a training run, and resuming it as if it had never stopped.

<name>__epoch_N.model   the weights after epoch N, of every epoch or the last few: a bare state dict with the released
                        names (and in its metadata the model's configuration, which loading passes over)
<name>__best.model      those of the epoch with the lowest validation loss
<name>__step_N.state    the last two saved states

No random generator is saved: the order of the data depends on the seed and the epoch alone, and dropout on the seed,
the step and the process alone.
"""

import logging
import re
import time
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
from utils.training.progress import Progress, check_numbers

STATES_KEPT = 2
BEFORE_A_STATE = ("__epoch_0", "__epoch_1")  # weights that may be there before the first state is saved
MAX_STATE_BYTES = 1 << 38  # 256 GiB: a model of 20 thousand million parameters and Adam's state of it

log = logging.getLogger("apc")


class Diverged(InputError):
    """The weights are NaN or infinite: with the same command, training would end there again."""


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
        """Raise Diverged where a step has made the weights NaN or infinite."""
        if not self._has_finite_weights():
            message = f"step {self.progress.step} or one shortly before made the weights NaN or infinite"
            advice = "start another experiment with a lower --learning_rate, --init_from the last weights if you like"
            raise self.ranks.exit_together(Diverged(f"{message}; {advice}"))

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
