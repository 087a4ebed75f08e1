"""The directory of one experiment: its configuration, log, TensorBoard curves and checkpoints.

logs/<name>.dir/
    config.json             every option, and what is needed to rebuild the model
    <name>.log              what was printed
    <name>.tb_log/          TensorBoard
    <name>__epoch_N.model   the weights after epoch N: a bare state dict with the released names
    <name>__best.model      those of the epoch with the lowest validation loss
    <name>__step_N.state    all that resuming needs, of the last two saves
"""

import contextlib
import logging
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.system.errors import InputError, one_line
from utils.system.files import (
    atomic_write,
    check_name,
    lock_directory,
    naming_file,
    other_files,
    read_json,
    refuse_special_file,
    refuse_to_remove,
    remove_leftovers,
    remove_made,
    write_json,
)
from utils.system.untrusted import load_untrusted

STATES_KEPT = 2
CURVES = re.compile(r"(events\.out\.tfevents\.)(\d+)(\..*)")  # the name of a file of TensorBoard's, with its time
MAX_STATE_BYTES = 1 << 38  # 256 GiB: a model of 20 thousand million parameters and what Adam knows of it

log = logging.getLogger("apc")


class Experiment:
    """Owned by one process at a time; use as a context.

    Args:
        store_path: where experiments are.
        name: the experiment's name.
        config: what config.json will hold (JSON types).
        resume: continue the experiment that is there, or start where there is none.
        overwrite: remove the experiment that is there.
        may_change: options that may differ when an experiment is resumed.

    Raises:
        InputError: the name holds an experiment already, or another process owns it; or the experiment to resume was
            started with other options.
    """

    def __init__(
        self,
        store_path: str | Path,
        name: str,
        config: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        may_change: frozenset[str] = frozenset(),
    ) -> None:
        self.name = check_name(name, "--experiment_name", "name")
        self.path = Path(store_path) / f"{name}.dir"
        self.config_path = self.path / "config.json"
        self._config, self._resume, self._overwrite, self._may_change = config, resume, overwrite, may_change
        self._stack = contextlib.ExitStack()
        self._writer: SummaryWriter | None = None
        self._last_points: dict[str, float] = {}  # those of the last step, by curve: part of a saved state
        self._last_step = 0

    def __enter__(self) -> "Experiment":
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_directory(self.path, "another run of this experiment", self._check))
            remove_leftovers(self.path)
            if self._overwrite:
                self._empty()
            write_json(self.config_path, self._config)
            self._start_log(stack)
            stack.callback(setattr, threading, "excepthook", threading.excepthook)
            threading.excepthook = _print_but_for_os_errors
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack, naming_file(self.tensorboard_path):
            if self._writer is not None:
                self._writer.close()

    @property
    def tensorboard_path(self) -> Path:
        """Where TensorBoard finds the curves."""
        return self.path / f"{self.name}.tb_log"

    def open_curves(self, step: int, points: dict[str, float]) -> None:
        """Start or go on writing curves after a step.

        Args:
            step: the last step done. What an interrupted run has written of that step and later ones is void.
            points: those of that step, as the saved state has them. An epoch's points share its last step, and an
                interrupted run may have written them after the state was saved.
        """
        self._put_curves_before(int(time.time()))
        self._writer = SummaryWriter(str(self.tensorboard_path), purge_step=step)
        for curve, value in points.items():
            self.add_point(curve, value, step)

    def _put_curves_before(self, now: int) -> None:
        """Rename curves of a clock that was ahead: TensorBoard reads files in the order of the times in their names."""
        files = self._curve_files()
        for number, path in enumerate(files):
            start, then, rest = CURVES.fullmatch(path.name).groups()
            path.rename(path.with_name(f"{start}{min(int(then), now - len(files) + number):010d}{rest}"))

    def _curve_files(self) -> list[Path]:
        """TensorBoard's files, in its order."""
        found = self.tensorboard_path.iterdir() if self.tensorboard_path.is_dir() else ()
        return sorted(path for path in found if CURVES.fullmatch(path.name))

    def add_points(self, group: str, points: dict[str, float], step: int) -> None:
        """Add points of a step to the curves of a group."""
        for curve, value in points.items():
            self.add_point(f"{group}/{curve}", value, step)

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer, once the curves are open."""
        return self._writer

    def add_point(self, curve: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if step != self._last_step:
            self._last_step, self._last_points = step, {}
        self._last_points[curve] = value
        with naming_file(self.tensorboard_path):
            self._writer.add_scalar(curve, value, step)

    def save_weights(self, model: torch.nn.Module, epoch: int | None) -> Path:
        """Write <name>__epoch_N.model, or <name>__best.model: a bare state dict, on the CPU, of the released names."""
        path = self.path / f"{self.name}__{'best' if epoch is None else f'epoch_{epoch}'}.model"
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        with atomic_write(path) as file:
            torch.save(weights, file)
        return path

    def save_state(self, state: dict[str, Any], step: int) -> Path:
        """Write all that resuming needs, flush the curves up to it, and keep the last two such files."""
        with naming_file(self.tensorboard_path):
            self._writer.flush()
        path = self.path / f"{self.name}__step_{step}.state"
        with atomic_write(path) as file:
            torch.save(state | {"points": self._last_points if step == self._last_step else {}}, file)
        for old in self._states()[:-STATES_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def load_state(self) -> dict[str, Any] | None:
        """The last saved state, or the one before where the last is damaged; None where there is none."""
        states = self._states()
        for path in reversed(states):
            try:
                state = load_untrusted(path, MAX_STATE_BYTES)
                log.info("resuming from %s", path)
                return state
            except InputError as error:
                log.warning("%s", error)
        if states:
            raise InputError(f"no saved state of {self.path} can be read; --overwrite the experiment")
        return None

    def _states(self) -> list[Path]:
        """Saved states, oldest first."""
        numbered = re.compile(re.escape(self.name) + r"__step_(\d+)\.state")
        found = [(int(match[1]), path) for path in self.path.iterdir() if (match := numbered.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def _check(self) -> None:
        """Raise InputError where this run is not to write there; nothing has been written yet."""
        for path in (self.path / f"{self.name}.log", self.tensorboard_path):
            refuse_special_file(path)
        if self._overwrite:
            refuse_to_remove(self.path, [self._config.get("init_from")])
        elif self.config_path.exists() and self._resume:
            self._check_options(read_json(self.config_path))
        elif self.config_path.exists() or self._made():
            has_config = "" if self.config_path.exists() else f" without {self.config_path.name}"
            raise InputError(f"{self.path} already holds an experiment{has_config}; continue it with --resume, give "
                             "another --experiment_name, or --overwrite it")  # fmt: skip

    def _made(self) -> list[str]:
        """The names of the files that are an experiment's own."""
        own = re.compile(re.escape(self.name) + r"(__epoch_\d+\.model|__best\.model|__step_\d+\.state|\.log)")
        names = sorted(other_files(self.path))
        return [name for name in names if own.fullmatch(name) or name == self.config_path.name]

    def _check_options(self, before: dict[str, Any]) -> None:
        changed = [
            f"{key} was {one_line(before.get(key), 60)} and is now {one_line(self._config.get(key), 60)}"
            for key in sorted(self._config.keys() | before.keys())
            if key not in self._may_change and self._config.get(key) != before.get(key)
        ]
        if changed:
            raise InputError(f"{self.path} cannot be resumed with other options: {'; '.join(changed)}")

    def _empty(self) -> None:
        """Remove an experiment's own files, and nothing else."""
        remove_made(self.tensorboard_path, [path.name for path in self._curve_files()])
        with contextlib.suppress(OSError):  # missing, or holds other files
            self.tensorboard_path.rmdir()
        remove_made(self.path, self._made())
        others = sorted(other_files(self.path))
        if others:
            log.warning("%s also holds %s, left as they are", self.path, one_line(", ".join(others), 200))

    def _start_log(self, stack: contextlib.ExitStack) -> None:
        """Send the log to the terminal and to <name>.log."""
        logging.raiseExceptions = False  # a full disk must not print a traceback for every line of the log
        log.setLevel(logging.INFO)
        log.propagate = False
        formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
        log_path = self.path / f"{self.name}.log"
        for handler in (logging.StreamHandler(sys.stderr), logging.FileHandler(log_path)):
            handler.setFormatter(formatter)
            log.addHandler(handler)
            stack.callback(_close, handler, log_path)
            stack.callback(log.removeHandler, handler)
        stack.enter_context(logging_redirect_tqdm([log]))


def _close(handler: logging.Handler, path: Path) -> None:
    """Close a log, which writes again what a full disk did not take."""
    with naming_file(path):
        handler.close()


def _print_but_for_os_errors(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback of a thread for a full disk: TensorBoard hands that error on to its caller."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


class Bystander(Experiment):
    """What the other processes have in the place of the first one's experiment: nothing of it is written."""

    def __init__(self) -> None:
        self.path = Path()

    def __enter__(self) -> "Bystander":
        log.addHandler(logging.NullHandler())
        log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def open_curves(self, step: int, points: dict[str, float]) -> None:
        pass

    def add_point(self, curve: str, value: float, step: int) -> None:
        pass

    def save_weights(self, model: torch.nn.Module, epoch: int | None) -> Path:
        return self.path

    def save_state(self, state: dict[str, Any], step: int) -> Path:
        return self.path

    def load_state(self) -> None:
        pass
