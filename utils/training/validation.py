"""The loss over a validation set, whole and split by split, shared out over the processes."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch

from utils.corpus.batch_order import BatchOrder, deal
from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.training.distributed import Ranks
from utils.training.objective import Objective

Load = Callable[[list[list[int]]], Iterator[Any]]  # the utterances of each batch -> the batches, as datasets.batches

VALIDATION_FRAMES = 100_000  # padded frames in a validation batch: no gradients, so far more than in training


@torch.no_grad()
def validation_losses(
    objective: Objective, val_set: Any, load: Load, ranks: Ranks, stop: StopRequest
) -> dict[str, float]:
    """The mean loss over each split, by its name, and over all of them, under the name ''.

    Args:
        objective: the loss of a batch.
        val_set: a LibriSpeech.
        load: reads batches, given the indices of their utterances.
        ranks: the processes; each takes its share in the largest batches that fit.
        stop: a signal to any of them ends all.

    Raises:
        InputError: a file is damaged, or a loss is not finite.
        Stopped: a signal came.
    """
    objective.eval()
    error = sums = None
    try:
        sums = _largest_that_fits(objective, val_set, load, ranks, stop)
    except InputError as caught:
        error = caught
    finally:
        objective.train()
    ranks.agree(error, stop)
    sums = ranks.sum(sums)  # (splits, 2): loss x target frames, target frames
    if not sums.isfinite().all():
        loss = sums[:, 0].sum().item()
        raise ranks.ending(InputError(f"the validation loss is {loss}: numbers in the data or weights are too large"))
    totals = torch.cat([sums, sums.sum(0, keepdim=True)])
    return dict(zip([*val_set.splits(), ""], (totals[:, 0] / totals[:, 1]).tolist(), strict=True))


def _largest_that_fits(objective: Objective, val_set: Any, load: Load, ranks: Ranks, stop: StopRequest) -> torch.Tensor:
    batch_size = max(1, VALIDATION_FRAMES // max(val_set.lengths))
    while True:
        try:
            return _sums(objective, val_set, load, ranks, stop, batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2


def _sums(
    objective: Objective, val_set: Any, load: Load, ranks: Ranks, stop: StopRequest, batch_size: int
) -> torch.Tensor:
    """This process's part of each split: (splits, 2), loss x target frames and target frames."""
    splits = val_set.splits()
    shares = []  # (number of the split, indices)
    for split, indices in enumerate(splits.values()):
        for batch in BatchOrder([val_set.lengths[i] for i in indices], batch_size * ranks.size, bucketing=True):
            share = deal([indices[place] for place in batch], val_set.lengths, ranks.size)[ranks.rank]
            shares += [(split, share)] if share else []
    sums = torch.zeros(len(splits), 2, dtype=torch.float64, device=ranks.device)
    with closing(load([share for _, share in shares])) as batches:
        for (split, _), batch in zip(shares, batches, strict=False):
            inputs = batch.inputs.to(ranks.device, non_blocking=True)  # (batch, longest, mel_dim)
            count = objective.count(batch.lengths, val_set.max_seq_len)
            sums[split, 0] += count * objective(inputs, batch.lengths, val_set.max_seq_len)
            sums[split, 1] += count
            if stop.signum:
                break
    return sums
