"""What is measured while training: TensorBoard's curves, and a bar over the steps of an epoch."""

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from utils.system.files import naming_file
from utils.training.progress import check_numbers
from utils.training.validation import ALL_SPLITS

LINE_SECONDS = 60  # between lines on progress where there is no terminal for a bar
LOSSES = {  # TensorBoard's custom scalars: training and validation in one chart
    "loss": {
        "by epoch": ["Multiline", ["epoch/train_loss", "epoch/val_loss"]],
        "by step": ["Multiline", ["step/loss", "step/val_loss"]],
    }
}
RESULTS = ("epoch/train_loss", "epoch/val_loss", "epoch/best_val_loss")  # metrics of HPARAMS: the last values
EVENTS = re.compile(r"(events\.out\.tfevents\.)(\d+)(\..*)")  # the name of a file of TensorBoard's, with its time

log = logging.getLogger("apc")


class Curves:
    """TensorBoard's curves in a directory (None writes nothing). Their state is the points of the last step.

    Those of the group 'epoch' are drawn over epochs, all others over steps. `settings` are shown in HPARAMS.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, str | float] | None = None) -> None:
        self.path, self.writer, self._settings = path, None, settings or {}
        self._step, self._points = 0, {}

    def state_dict(self) -> dict[str, float]:
        """The points of the last step, by curve."""
        return self._points

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the points of the last step, or raise TypeError."""
        check_numbers(state, "points")
        self._points = dict(state)

    def open(self, step: int, epoch: int) -> None:
        """Start or continue the curves after a step, and after this many epochs.

        What an interrupted run has written of that step and later ones is void, and that step's points are written as
        they were saved: an epoch's points share its last step, and may have been written after the state was saved.
        """
        if self.path is None:
            return
        self._rename_files_before(int(time.time()))
        self._step, self.writer = step, SummaryWriter(str(self.path), purge_step=step)
        if step == 0:
            self._describe()
        self._write(self._points, epoch)

    def add(self, group: str, points: dict[str, float], step: int, epoch: int) -> None:
        """Add points of a step to the curves of a group."""
        if step != self._step:
            self._step, self._points = step, {}
        points = {f"{group}/{curve}": value for curve, value in points.items()}
        self._points |= points
        if self.writer is not None:
            self._write(points, epoch)

    def add_validation(
        self, val_losses: dict[str, float], results: dict[str, float], step: int, epoch: int
    ) -> dict[str, float]:
        """Add the losses of `validation_losses`, and an epoch's other results; returns the losses of several splits."""
        val_loss = {"val_loss": val_losses[ALL_SPLITS]}
        by_split = {f"val_loss/{split}": loss for split, loss in val_losses.items() if split != ALL_SPLITS}
        by_split = by_split if len(by_split) > 1 else {}
        self.add("epoch", val_loss | results | by_split, step, epoch)
        self.add("step", val_loss, step, epoch)
        return by_split

    def flush(self) -> None:
        """Write all points to the disk."""
        with naming_file(self.path):
            self.writer.flush()

    def close(self) -> None:
        """Close the writer."""
        if self.writer is not None:
            with naming_file(self.path):
                self.writer.close()

    def files(self) -> list[Path]:
        """TensorBoard's files, in its order."""
        found = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(path for path in found if EVENTS.fullmatch(path.name))

    def _write(self, points: dict[str, float], epoch: int) -> None:
        with naming_file(self.path):
            for curve, value in points.items():
                self.writer.add_scalar(curve, value, epoch if curve.startswith("epoch/") else self._step)

    def _describe(self) -> None:
        """Say which curves share a chart, what was set, and which curves are results."""
        with naming_file(self.path):
            self.writer.add_custom_scalars(LOSSES)
            experiment, session, _ = hparams(dict(self._settings), dict.fromkeys(RESULTS, 0.0))
            for summary in (experiment, session):
                self.writer.file_writer.add_summary(summary, 0)

    def _rename_files_before(self, now: int) -> None:
        """Rename files of a clock that was ahead: TensorBoard reads files in the order of the times in their names."""
        files = self.files()
        for number, path in enumerate(files):
            start, then, rest = EVENTS.fullmatch(path.name).groups()
            path.rename(path.with_name(f"{start}{min(int(then), now - len(files) + number):010d}{rest}"))


class EpochBar:
    """A progress bar over the batches of an epoch, or lines in the log without a terminal; use as a context."""

    def __init__(self, epoch: int, done: int, batches: int, is_shown: bool) -> None:
        disable = None if is_shown else True  # None: where there is no terminal
        self._bar = tqdm(total=batches, initial=done, desc=f"epoch {epoch}", disable=disable)
        self._epoch, self._done = epoch, done
        self._last_step = self._last_line = time.monotonic()

    def __enter__(self) -> "EpochBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, loss: float, frames: int) -> float:
        """Show a step, its loss and the true frames of its batch; returns the frames per second since the last one."""
        now = time.monotonic()
        speed = frames / max(now - self._last_step, 1e-9)
        self._last_step = now
        self._done += 1
        message = f"loss {loss:.4f}, {speed:,.0f} frames/s"
        self._bar.set_postfix_str(message, refresh=False)
        self._bar.update()
        if self._bar.disable and now - self._last_line > LINE_SECONDS:
            self._last_line = now
            log.info("epoch %d: batch %d of %d, %s", self._epoch, self._done, self._bar.total, message)
        return speed
