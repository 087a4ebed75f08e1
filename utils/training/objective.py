"""The training objective: the L1 distance between the predicted frame and the one that came n frames later.

Chung, Hsu, Tang and Glass (Interspeech 2019), equation 1: the sum over t of |x_{t+n} - y_t|, here as a mean. For
shift n the model reads frames 1..T-n and is compared with frames n+1..T.
"""

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from utils.rnn.packing import Packing
from utils.rnn.precision import autocast

LOSSES = ("masked", "padded")


class Predictor(Protocol):
    """What the objective needs of a model: `predict` on packed frames, and its answer on padding."""

    mel_dim: int
    postnet: torch.nn.Module

    def predict(self, frames: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Packed frames (frames, mel_dim) to packed predictions (frames, mel_dim)."""


def apc_loss(
    model: Predictor,
    inputs: torch.Tensor,
    lengths: torch.Tensor,
    time_shift: int = 1,
    loss: str = "masked",
    max_seq_len: int | None = None,
) -> torch.Tensor:
    """The mean absolute error of the frames that come `time_shift` frames later.

    Args:
        model: an APCModel.
        inputs: float (batch, seq_len, mel_dim), padded at the end; seq_len may be trimmed to the longest utterance.
        lengths: int64 (batch,), on the CPU: true frames, each more than time_shift.
        time_shift: n, in frames.
        loss: 'masked', the mean over true frames and mel bins; or 'padded', as the released code has it: over the
            padding too, where the prediction is the last layer's bias and the target zero.
        max_seq_len: for 'padded', the frames every utterance was padded to (default: seq_len).

    Returns:
        A scalar, with its graph.
    """
    batch, seq_len, mel_dim = inputs.shape
    packing = Packing.from_lengths(lengths - time_shift, seq_len, inputs.device)
    frames = inputs.reshape(batch * seq_len, mel_dim)
    predicted = model.predict(frames[packing.index], packing)  # (frames, mel_dim)
    targets = frames[packing.index + time_shift]  # (frames, mel_dim)
    if loss == "masked":
        return F.l1_loss(predicted, targets)
    total = F.l1_loss(predicted, targets, reduction="sum")
    padding = batch * ((max_seq_len or seq_len) - time_shift) - len(targets)  # frames
    total = total + padding * model.postnet.layer.bias.abs().sum()
    return total / ((len(targets) + padding) * mel_dim)


def count_targets(lengths: torch.Tensor, time_shift: int, loss: str, max_seq_len: int) -> int:
    """How many frames `apc_loss` is a mean over, so that batches can be averaged as one."""
    if loss == "masked":
        return int((lengths - time_shift).sum())
    return len(lengths) * (max_seq_len - time_shift)


class Objective(nn.Module):
    """`apc_loss` of a model as a module: what DistributedDataParallel wraps, and autocast surrounds.

    Args:
        model: an APCModel, whose weights stay float32.
        time_shift, loss: as for `apc_loss`.
        precision: of the matrix products, by name.
    """

    def __init__(self, model: nn.Module, time_shift: int, loss: str, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.time_shift, self.loss, self.precision = model, time_shift, loss, precision

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor, max_seq_len: int) -> torch.Tensor:
        """`apc_loss`; of an empty batch zero, with a gradient of zero for every parameter."""
        if len(inputs) == 0:
            return 0.0 * sum(parameter.sum() for parameter in self.model.parameters())
        with autocast(inputs.device, self.precision):
            return apc_loss(self.model, inputs, lengths, self.time_shift, self.loss, max_seq_len)

    def empty_batch(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The arguments of `forward` for no utterance."""
        device = next(self.model.parameters()).device
        return torch.zeros(0, 0, self.model.mel_dim, device=device), torch.zeros(0, dtype=torch.int64), 0

    def num_targets(self, lengths: torch.Tensor, max_seq_len: int) -> int:
        """The number of target frames that `forward` averages over, given the lengths, int64 (batch,), of a batch."""
        return count_targets(lengths, self.time_shift, self.loss, max_seq_len)
