"""Training APCs by train_apc.py in subprocesses, which end with this process."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch
from tqdm import tqdm

from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.system.workers import FEWER_AT_ONCE

TRAIN_SCRIPT = Path(__file__).resolve().parents[2] / "train_apc.py"
POLL_SECONDS = 0.2
GRACE_SECONDS = 2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Training(NamedTuple):
    """An experiment of train_apc.py, up to an epoch."""

    store: Path
    experiment: str
    epochs: int
    arguments: list[str]  # all the others

    def checkpoint(self, epoch: int | None = None) -> Path:
        """The weights after an epoch (default: the last)."""
        epoch = self.epochs if epoch is None else epoch
        return self.store / f"{self.experiment}.dir" / f"{self.experiment}__epoch_{epoch}.model"

    @property
    def epochs_done(self) -> int:
        """The number of epochs whose weights are there."""
        return sum(self.checkpoint(epoch).exists() for epoch in range(1, self.epochs + 1))


class Running(NamedTuple):
    """A training's process, and the file of what it prints, or None where that is the terminal."""

    training: Training
    process: subprocess.Popen
    output: IO[bytes] | None

    def has_ended(self) -> bool:
        """Whether it has ended. Raises InputError if it failed."""
        if self.process.poll() and self.output:
            self.output.seek(0)
            sys.stderr.write(self.output.read().decode(errors="replace"))
        code, name = self.process.returncode, self.training.experiment
        if code and code < 0:
            raise InputError(
                f"training {name} was killed (signal {-code}), perhaps for want of memory; {FEWER_AT_ONCE}"
            )
        if code:
            raise InputError(f"training {name} ended with exit code {code}; the reason is above")
        return code is not None


def options_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as options of train_apc.py. True gives a flag; what is False or None is left out."""
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def train(trainings: Sequence[Training], at_once: int = 1) -> None:
    """Train experiments, or resume training them. One that is finished is not trained again.

    A small model keeps one core of a CPU busy, however many threads it has: several at once take less time. Signals
    are forwarded to them, and they save their states.

    Args:
        trainings: the experiments.
        at_once: how many may train at once. They share the cores. Where it is more than one, a bar shows the progress
            of all, and what one prints appears only if it fails.

    Raises:
        InputError: a training failed and has printed why.
        Stopped: a signal came; the same call continues.
    """
    at_once = min(at_once, len(trainings))
    threads = max(1, torch.get_num_threads() // max(1, at_once))  # also for the last that is left
    waiting = [training for training in trainings if not training.checkpoint().exists()]
    with StopRequest("run the same command again to continue") as stop, contextlib.ExitStack() as files:
        bar = files.enter_context(_epoch_bar(trainings, is_shown=at_once > 1 and bool(waiting)))
        running: list[Running] = []
        try:
            while (waiting or running) and stop.signum is None:
                while waiting and len(running) < at_once:
                    output = files.enter_context(tempfile.TemporaryFile()) if at_once > 1 else None
                    running.append(_start(waiting.pop(0), threads, output))
                time.sleep(POLL_SECONDS)
                if stop.signum is None:  # which may have ended them as well
                    running = [one for one in running if not one.has_ended()]
                bar.update(sum(training.epochs_done for training in trainings) - bar.n)
        finally:
            _wait(running, GRACE_SECONDS)
            for one in running:
                one.process.send_signal(stop.signum or signal.SIGTERM)
            for one in running:
                one.process.wait()
        stop.check()


def _wait(running: Sequence[Running], seconds: float) -> None:
    """Wait for trainings to end, which a scheduler may have sent a signal: a second would stop them without a save."""
    end = time.monotonic() + seconds
    for one in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0, end - time.monotonic()))


def _epoch_bar(trainings: Sequence[Training], is_shown: bool) -> tqdm:
    names = ", ".join(training.experiment for training in trainings)
    total = sum(training.epochs for training in trainings)
    return tqdm(desc=f"training {names}", total=total, unit="epoch", disable=None if is_shown else True)


def _start(training: Training, threads: int, output: IO[bytes] | None) -> Running:
    """Start a training's process. A session of its own keeps a terminal's Ctrl-C from reaching it twice."""
    script = [sys.executable, TRAIN_SCRIPT, "--resume", "--store_path", training.store]
    command = [*map(str, script), f"--experiment_name={training.experiment}", f"--epochs={training.epochs}"]
    settings = {"env": os.environ | {"OMP_NUM_THREADS": str(threads)}, "stdout": output, "stderr": output}
    end_with_parent = _end_with_parent()
    process = subprocess.Popen(
        [*command, *training.arguments], preexec_fn=end_with_parent, start_new_session=True, **settings
    )
    return Running(training, process, output)


def _end_with_parent() -> Callable[[], None] | None:
    """A function for the child process that has Linux kill it when this process dies, even by SIGKILL.

    Otherwise it would continue to train and keep its experiment locked. Its last save remains intact.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def request_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            os._exit(1)

    return request_signal
