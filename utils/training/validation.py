"""The loss over a validation set, whole and split by split, divided over the processes."""

from contextlib import closing
from typing import TYPE_CHECKING

import torch

from utils.corpus.batch_order import BatchOrder, deal
from utils.corpus.batch_reader import BatchReader
from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.training.distributed import Ranks
from utils.training.objective import Objective

if TYPE_CHECKING:
    from datasets import LibriSpeech

ALL_SPLITS = ""  # in place of a split's name
VALIDATION_FRAMES = 100_000  # padded frames in a validation batch: no gradients, so far more than in training


@torch.no_grad()
def validation_losses(
    objective: Objective, val_set: "LibriSpeech", reader: BatchReader, ranks: Ranks, stop: StopRequest
) -> dict[str, float]:
    """The mean loss over each split, by its name, and over ALL_SPLITS.

    Each process takes its share in the largest batches that fit; a signal to any of them ends all.

    Raises:
        InputError: a file is damaged, or a loss is not finite.
        Stopped: a signal came.
    """
    objective.eval()
    try:
        sums = ranks.run_on_all(_sums_in_largest_batches, objective, val_set, reader, ranks, stop)
    finally:
        objective.train()
    ranks.raise_if_any_failed(stop=stop)
    sums = ranks.sum(sums)  # (splits, 2): loss x target frames, target frames
    if not sums.isfinite().all():
        message = f"the validation loss is {sums[:, 0].sum().item()}: numbers in the data or weights are too large"
        raise ranks.exit_together(InputError(message))
    totals = torch.cat([sums, sums.sum(0, keepdim=True)])
    return dict(zip([*val_set.splits(), ALL_SPLITS], (totals[:, 0] / totals[:, 1]).tolist(), strict=True))


def _sums_in_largest_batches(
    objective: Objective, val_set: "LibriSpeech", reader: BatchReader, ranks: Ranks, stop: StopRequest
) -> torch.Tensor:
    batch_size = max(1, VALIDATION_FRAMES // max(val_set.lengths))
    while True:
        try:
            return _sums(objective, val_set, reader, ranks, stop, batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2


def _sums(
    objective: Objective, val_set: "LibriSpeech", reader: BatchReader, ranks: Ranks, stop: StopRequest, batch_size: int
) -> torch.Tensor:
    """This process's part of each split: (splits, 2), loss x target frames and target frames."""
    splits = val_set.splits()
    batches: list[tuple[int, list[int]]] = []  # number of the split, indices
    for split, indices in enumerate(splits.values()):
        own = deal(indices, val_set.lengths, ranks.size)[ranks.rank]  # whatever the size of this process's batches
        order = BatchOrder([val_set.lengths[i] for i in own], batch_size, bucketing=True) if own else ()
        batches += [(split, [own[place] for place in batch]) for batch in order]
    sums = torch.zeros(len(splits), 2, dtype=torch.float64, device=ranks.device)
    with closing(reader.batches(val_set, [indices for _, indices in batches])) as read:
        for (split, _), batch in zip(batches, read, strict=False):
            inputs = batch.inputs.to(ranks.device, non_blocking=True)  # (batch, longest, mel_dim)
            count = objective.num_targets(batch.lengths, val_set.max_seq_len)
            sums[split, 0] += count * objective(inputs, batch.lengths, val_set.max_seq_len)
            sums[split, 1] += count
            if stop.signum:
                break
    return sums
