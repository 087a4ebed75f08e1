"""Padded batches to packed frames and back, by one index that both directions and the objective share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from utils.errors import InputError, one_line


class Packing(NamedTuple):
    """Where the true frames of a padded batch stand in packed order: by time, then by falling length.

    Attributes:
        index: int64 (frames,), the position of each packed frame in the batch flattened to (batch * seq_len, ...).
        batch_sizes: int64 (longest,), on the CPU: how many utterances have a frame at each time.
        sorted_indices: int64 (batch,), the utterances by falling length.
        unsorted_indices: int64 (batch,), its inverse.
    """

    index: torch.Tensor
    batch_sizes: torch.Tensor
    sorted_indices: torch.Tensor
    unsorted_indices: torch.Tensor

    def pack(self, frames: torch.Tensor) -> PackedSequence:
        """Packed frames as PyTorch's recurrent layers take them; frames are (frames, size), in packed order."""
        return PackedSequence(frames, self.batch_sizes, self.sorted_indices, self.unsorted_indices)


def check_lengths(lengths: torch.Tensor | Sequence[int], batch: int, seq_len: int) -> torch.Tensor:
    """The lengths of a batch as int64 (batch,) on the CPU.

    Args:
        lengths: (batch,), a tensor on any device or a sequence of ints, in any order.
        batch: how many utterances the batch has.
        seq_len: frames in each padded utterance.

    Raises:
        ValueError: another number of lengths than utterances, not integers, or a length below 1 or above seq_len.
    """
    try:
        lengths = torch.as_tensor(lengths).detach().cpu()
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"lengths are no integers: {one_line(error, 100)}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise InputError(f"lengths are {lengths.dtype}: frames are counted in integers")
    if lengths.shape != (batch,):
        raise InputError(f"lengths have shape {tuple(lengths.shape)} but the batch has {batch} utterances")
    lengths = lengths.to(torch.int64)
    if batch == 0 or seq_len == 0:
        raise InputError(f"an empty batch: {batch} utterances of {seq_len} frames")
    wrong = (lengths < 1) | (lengths > seq_len)
    if wrong.any():
        utterance = int(wrong.nonzero()[0])
        raise InputError(f"length {int(lengths[utterance])} of utterance {utterance} is not between 1 and {seq_len}")
    return lengths


def packing(lengths: torch.Tensor, seq_len: int, device: torch.device) -> Packing:
    """How to pack a padded batch.

    Args:
        lengths: int64 (batch,), on the CPU, each from 1 to seq_len.
        seq_len: frames in each padded utterance.
        device: where the frames are.
    """
    falling, order = torch.sort(lengths, descending=True, stable=True)  # (batch,), (batch,)
    longest = int(falling[0])
    is_true = torch.arange(longest)[:, None] < falling[None, :]  # (longest, batch)
    times, ranks = is_true.nonzero(as_tuple=True)  # (frames,), (frames,): by time, then by rank
    index = order[ranks] * seq_len + times  # (frames,)
    return Packing(
        index.to(device, non_blocking=True),
        is_true.sum(1),
        order.to(device, non_blocking=True),
        torch.argsort(order).to(device, non_blocking=True),
    )
