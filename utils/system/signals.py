"""SIGINT and SIGTERM as a request to finish what is under way, so that nothing is lost."""

import math
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

from utils.system.errors import EXIT_SIGNAL_BASE, Stopped

HANDLED = (signal.SIGINT, signal.SIGTERM)
WORKER_GRACE_SECONDS = 300  # a step and a save may take long
LOOK_SECONDS = 0.5


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is noted and a second one stops the process at once.

        with StopRequest("run the same command again to continue") as stop:
            for batch in batches:
                work(batch)
                stop.check()  # where the work is whole

    Args:
        how_to_continue: the end of the message that the script prints.
        patience: seconds in which a second signal counts as the first: a launcher passes on what a scheduler has
            sent to every process.
    """

    def __init__(self, how_to_continue: str = "", patience: float = 0) -> None:
        self.how_to_continue = how_to_continue
        self.patience = patience
        self.signum: int | None = None
        self._first = math.inf  # when the first signal came
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {signum: signal.signal(signum, self._note) for signum in HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first >= self.patience:
            os._exit(EXIT_SIGNAL_BASE + signum)
        self._first = min(self._first, now)
        self.signum = self.signum or signum

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.signum is not None:
            message = f"stopped by {signal.Signals(self.signum).name}"
            raise Stopped(self.signum, f"{message}; {self.how_to_continue}" if self.how_to_continue else message)


def start_worker(*_: object) -> None:
    """Leave signals to the parent of this worker process, and end it with the parent.

    A terminal or scheduler sends signals to every process of the group. After SIGTERM the parent has
    WORKER_GRACE_SECONDS to finish its step. PyTorch's own watch does not notice a parent that died while starting the
    worker.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))  # unhandled, SIGALRM ends it
    threading.Thread(target=watch, daemon=True).start()


def watch_launcher(pid: int) -> None:
    """Send this process SIGTERM, which saves its work, when its parent `pid` is gone: a launcher that was killed."""

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
