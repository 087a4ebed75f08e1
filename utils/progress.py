"""Where a training run is."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass
class Progress:
    """Where training is. Saved and restored whole.

    Attributes:
        epoch: the epoch under way, from 1.
        batch: batches of it that are done.
        step: batches done in all.
        loss_sum, targets: sum over the epoch's batches of loss x target frames, and of target frames.
        best_val_loss: the lowest so far.
        skipped_in_a_row: batches left out since the last good one, for a loss or gradient that was not finite.
        closed_at: the step after which --max_steps ended a run within an epoch, and its weights were written.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    best_val_loss: float = math.inf
    skipped_in_a_row: int = 0
    closed_at: int = -1


class Unread(NamedTuple):
    """A step whose loss has not been read from the device."""

    step: int
    indices: list[int]
    frames: int
    targets: int
    values: torch.Tensor  # (2,): loss, gradient norm
