"""The losses of steps: left on the device until several can be read at once, then shown as training goes on."""

import logging
import time
from typing import NamedTuple

import torch
from tqdm import tqdm

LINE_EVERY_S = 60  # between lines on progress where there is no terminal for a bar

log = logging.getLogger("apc")


class Unread(NamedTuple):
    """A step whose loss has not been read from the device.

    Attributes:
        step: its number, from 1.
        indices: the utterances of its batch.
        frames: how many true frames they have.
        targets: how many frames its loss is a mean over.
        learning_rate: of the step.
        values: (2,), the loss and the gradient norm.
    """

    step: int
    indices: list[int]
    frames: int
    targets: int
    learning_rate: float
    values: torch.Tensor


class StepLog:
    """Collects steps, reads their losses, and shows them by a bar, or by lines where there is no terminal.

    Attributes:
        unread: the steps since the last reading.
        speed: true frames a second between the last two readings.
    """

    def __init__(self) -> None:
        self.unread: list[Unread] = []
        self.speed = 0.0
        self._bar = tqdm(disable=True)
        self._epoch = self._batch = self._batches = 0
        self._last_read = self._last_line = time.monotonic()

    def start_epoch(self, epoch: int, batch: int, batches: int, is_shown: bool) -> tqdm:
        """The bar of an epoch, `batch` of whose batches are done; close it at the end."""
        self._epoch, self._batch, self._batches = epoch, batch, batches
        self._last_read = time.monotonic()
        disable = None if is_shown else True  # None: where there is no terminal
        self._bar = tqdm(total=batches, initial=batch, desc=f"epoch {epoch}", disable=disable)
        return self._bar

    def add(self, step: Unread) -> None:
        """Take note of a step that is done."""
        self.unread.append(step)
        self._batch += 1
        self._bar.update()

    def read(self) -> list[tuple[Unread, float, float]]:
        """Each step since the last reading, with its loss and gradient norm."""
        if not self.unread:
            return []
        values = torch.stack([step.values for step in self.unread]).tolist()  # waits for the device, once
        now = time.monotonic()
        self.speed = sum(step.frames for step in self.unread) / max(now - self._last_read, 1e-9)
        read = [(step, *of_step) for step, of_step in zip(self.unread, values, strict=True)]
        self.unread, self._last_read = [], now
        told = f"loss {values[-1][0]:.4f}, {self.speed:,.0f} frames/s"
        self._bar.set_postfix_str(told, refresh=False)
        if self._bar.disable and now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            log.info("epoch %d: batch %d of %d, %s", self._epoch, self._batch, self._batches, told)
        return read
