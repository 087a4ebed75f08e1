"""Training an APC through train_apc.py, as a process of its own that ends with this one."""

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
    """Train an experiment up to an epoch, or go on training it. What is there is not trained again.

    A signal is handed on: the training saves itself, and the same call continues it.

    Raises:
        InputError: training failed; it has said why.
        Stopped: a signal came.
    """
    if checkpoint_path(store, experiment, epochs).exists():
        return
    command = [
        sys.executable, str(TRAIN_SCRIPT), "--resume", "--store_path", str(store), "--experiment_name", experiment,
        "--epochs", str(epochs), *arguments,
    ]  # fmt: skip
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
        raise InputError(f"training {experiment} ended with exit code {process.returncode}; it says why above")


def _end_with_parent() -> Callable[[], None] | None:
    """Lets the system end a child when this process is killed, however it is; only Linux can.

    Else it would train on, and own its experiment. It need not be gentle: what training has saved stays whole.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        """Runs in the child, before the script."""
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before it could be asked for
            os._exit(1)

    return ask
