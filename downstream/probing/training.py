"""Training an APC by train_apc.py in a subprocess, which ends with this process."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from utils.system.errors import InputError
from utils.system.signals import StopRequest

TRAIN_SCRIPT = Path(__file__).resolve().parents[2] / "train_apc.py"
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def checkpoint_path(store: Path, experiment: str, epoch: int) -> Path:
    """The weights of an experiment after an epoch."""
    return store / f"{experiment}.dir" / f"{experiment}__epoch_{epoch}.model"


def train(store: Path, experiment: str, epochs: int, arguments: list[str]) -> None:
    """Train an experiment up to an epoch, or resume training it. A finished experiment is not trained again.

    Signals are forwarded to the training, which saves its state.

    Raises:
        InputError: training failed and has printed why.
        Stopped: a signal came; the same call continues.
    """
    if checkpoint_path(store, experiment, epochs).exists():
        return
    script = [sys.executable, TRAIN_SCRIPT, "--resume", "--store_path", store, "--experiment_name", experiment]
    command = [*map(str, script), "--epochs", str(epochs), *arguments]
    with StopRequest("run the same command again to continue") as stop:
        with subprocess.Popen(command, preexec_fn=_end_with_parent()) as process:
            while process.poll() is None:
                if stop.signum is not None:
                    process.send_signal(stop.signum)
                    process.wait()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        stop.check()
    if process.returncode:
        raise InputError(f"training {experiment} ended with exit code {process.returncode}; the reason is above")


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
