"""The order of packed frames: one index that packing, unpacking and the objective share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from utils.system.errors import InputError, one_line


class Packing(NamedTuple):
    """The true frames of a padded batch in packed order: by time, then by decreasing length."""

    index: torch.Tensor  # int64 (frames,): positions of the frames in the batch flattened to (batch * seq_len, ...)
    batch_sizes: torch.Tensor  # int64 (longest,), on the CPU: number of utterances that have a frame at each time
    sorted_indices: torch.Tensor  # int64 (batch,): the utterances by decreasing length
    unsorted_indices: torch.Tensor  # int64 (batch,): its inverse

    @classmethod
    def from_lengths(cls, lengths: torch.Tensor, seq_len: int, device: torch.device) -> "Packing":
        """The packed order of a batch padded to seq_len, with frames on `device`; lengths as of `check_lengths`."""
        decreasing, order = torch.sort(lengths, descending=True, stable=True)  # (batch,), (batch,)
        is_true = torch.arange(int(decreasing[0]), device="cpu")[:, None] < decreasing[None, :]  # (longest, batch)
        times, ranks = is_true.nonzero(as_tuple=True)  # (frames,), (frames,): by time, then by rank
        index = order[ranks] * seq_len + times  # (frames,)
        index, order, inverse = (part.to(device, non_blocking=True) for part in (index, order, torch.argsort(order)))
        return cls(index, is_true.sum(1), order, inverse)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """The true frames, (frames, size), of a padded batch (batch, seq_len, size)."""
        return padded.flatten(0, 1)[self.index]

    def unpack(self, packed: torch.Tensor, batch: int, seq_len: int) -> torch.Tensor:
        """A padded batch (..., batch, seq_len, size), zero on padding, of packed frames (..., frames, size)."""
        padded = packed.new_zeros(*packed.shape[:-2], batch * seq_len, packed.size(-1))
        return padded.index_copy(-2, self.index, packed).unflatten(-2, (batch, seq_len))

    def sequence(self, frames: torch.Tensor) -> PackedSequence:
        """Wrap packed frames (frames, size) as PyTorch's recurrent layers take them."""
        return PackedSequence(frames, self.batch_sizes, self.sorted_indices, self.unsorted_indices)


def check_lengths(lengths: torch.Tensor | Sequence[int], batch: int, seq_len: int) -> torch.Tensor:
    """Return the lengths of a batch padded to seq_len, of any device and integer type, as int64 (batch,) on the CPU.

    Raises:
        ValueError: lengths that are not integers, not one per utterance, or not from 1 to seq_len.
    """
    if batch == 0 or seq_len == 0:
        raise InputError(f"an empty batch: {batch} utterances of {seq_len} frames")
    try:
        lengths = torch.as_tensor(lengths, device="cpu").detach()
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"lengths are not integers: {one_line(error, 100)}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise InputError(f"lengths are {lengths.dtype}: frames are counted in integers")
    if lengths.shape != (batch,):
        raise InputError(f"lengths have shape {tuple(lengths.shape)} but the batch has {batch} utterances")
    lengths = lengths.to(torch.int64)
    wrong = (lengths < 1) | (lengths > seq_len)
    if wrong.any():
        utterance = int(wrong.nonzero()[0])
        raise InputError(f"length {int(lengths[utterance])} of utterance {utterance} is not between 1 and {seq_len}")
    return lengths
