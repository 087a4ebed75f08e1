"""The directory of one experiment: its configuration, log and TensorBoard curves; checkpointing.py adds checkpoints.

logs/<name>.dir/
    config.json             every option, and what is needed to rebuild the model
    <name>.log              what was printed
    <name>.tb_log/          TensorBoard
logs/tensorboard/<name>     a link to it: the run's name in tensorboard --logdir logs/tensorboard
"""

import contextlib
import logging
import re
import sys
import threading
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from utils.system.errors import InputError, brief, describe_changes, one_line
from utils.system.files import (
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
from utils.training.metrics import Curves

RUNS_FOLDER = "tensorboard"  # of links, one a run

log = logging.getLogger("apc")


class Experiment:
    """The directory of one training run, owned by one process at a time; use in a `with` statement.

    Args:
        store_path: the directory of experiments.
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
        self.config_path, self.log_path = self.path / "config.json", self.path / f"{name}.log"
        shown = {key: value for key, value in config.items() if key not in may_change | {"experiment_name"}}
        self.curves = Curves(self.path / f"{name}.tb_log", _plain(shown))
        self._config, self._resume, self._overwrite, self._may_change = config, resume, overwrite, may_change
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Experiment":
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_directory(self.path, "another run of this experiment", self._check))
            remove_leftovers(self.path)
            if self._overwrite:
                self._empty()
            self._link_curves()
            write_json(self.config_path, self._config)
            self._start_log(stack)
            stack.callback(setattr, threading, "excepthook", threading.excepthook)
            threading.excepthook = _print_unless_os_error
            stack.callback(self.curves.close)
            log.info("curves: tensorboard --logdir %s", self.path.parent / RUNS_FOLDER)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _check(self) -> None:
        """Raise InputError where this run is not to write there; nothing has been written yet."""
        for path in (self.log_path, self.curves.path):
            refuse_special_file(path)
        if self._overwrite:
            refuse_to_remove(self.path, [self._config.get("init_from")])
        elif self.config_path.exists() and self._resume:
            if changes := describe_changes(read_json(self.config_path), self._config, self._may_change):
                raise InputError(f"{self.path} cannot be resumed with other options: {changes}")
        elif self.config_path.exists() or self._made():
            kind = "an experiment" if self.config_path.exists() else f"an experiment without {self.config_path.name}"
            advice = "continue it with --resume, give another --experiment_name, or --overwrite it"
            raise InputError(f"{self.path} already holds {kind}; {advice}")

    def _made(self) -> list[str]:
        """The names of the files that are an experiment's own."""
        own = re.compile(re.escape(self.name) + r"(__epoch_\d+\.model|__best\.model|__step_\d+\.state|\.log)")
        names = sorted(other_files(self.path))
        return [name for name in names if own.fullmatch(name) or name == self.config_path.name]

    def _empty(self) -> None:
        """Remove an experiment's own files, and nothing else."""
        remove_made(self.curves.path, [path.name for path in self.curves.files()])
        with contextlib.suppress(OSError):  # missing, or holds other files
            self.curves.path.rmdir()
        remove_made(self.path, self._made())
        others = sorted(other_files(self.path))
        if others:
            log.warning("%s also holds other files, which are kept: %s", self.path, one_line(", ".join(others), 200))

    def _link_curves(self) -> None:
        """Link the curves to where TensorBoard names runs after experiments, if the file system has links."""
        link = self.path.parent / RUNS_FOLDER / self.name
        with contextlib.suppress(OSError):
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path("..") / self.path.name / self.curves.path.name)

    def _start_log(self, stack: contextlib.ExitStack) -> None:
        """Send the log to the terminal and to <name>.log."""
        logging.raiseExceptions = False  # a full disk must not print a traceback for every line of the log
        log.setLevel(logging.INFO)
        log.propagate = False
        formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
        file = logging.FileHandler(self.log_path, encoding="utf-8", errors="backslashreplace")
        for handler in (logging.StreamHandler(sys.stderr), file):
            handler.setFormatter(formatter)
            log.addHandler(handler)
            stack.callback(_close, handler, self.log_path)
            stack.callback(log.removeHandler, handler)
        stack.enter_context(logging_redirect_tqdm([log]))


def _close(handler: logging.Handler, path: Path) -> None:
    """Close a log, which writes again what a full disk did not take."""
    with naming_file(path):
        handler.close()


def _print_unless_os_error(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback of a thread for a full disk: TensorBoard passes that error on to its caller."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def _plain(config: dict[str, Any]) -> dict[str, str | float]:
    """The settings of a configuration as TensorBoard shows them, text and numbers."""
    plain: dict[str, str | float] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            plain |= {name: part for name, part in value.items() if isinstance(part, str | int | float)}
        elif type(value) in (int, float):
            plain[key] = value
        elif value is not None:
            plain[key] = brief(" ".join(value) if isinstance(value, list) else value)
    return plain


class NullExperiment(Experiment):
    """What every process but the first has: nothing is written."""

    def __init__(self) -> None:
        self.name, self.path, self.curves = "", Path(), Curves(None)

    def __enter__(self) -> "NullExperiment":
        log.addHandler(logging.NullHandler())
        log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        pass
