"""Which utterances make up each batch of an epoch, and how a batch is shared out."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BUCKET_POOL = 50  # batches whose utterances are sorted by length together: large enough to fill, small enough to mix


class BatchOrder(Sampler[list[int]]):
    """Which utterances make up each batch of an epoch: fixed by the seed and the epoch alone.

    Args:
        lengths: frames of each utterance.
        batch_size: utterances per batch.
        seed: of the order; None for the dataset's own order.
        bucketing: batch utterances of similar length. Within pools of BUCKET_POOL batches drawn at random, utterances
            are sorted by length; the order of the batches is random again.

    Attributes:
        epoch: which epoch's order is given.
        first_batch: how many batches of it to skip: those that an interrupted run has done.
        end_batch: the batch to stop before; None for the epoch's end.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int | None = None, bucketing: bool = False
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size, self.seed, self.bucketing = batch_size, seed, bucketing
        self.epoch, self.first_batch = 0, 0
        self.end_batch: int | None = None

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._epoch_batches()[self.first_batch : self.end_batch]

    def _epoch_batches(self) -> list[list[int]]:
        random = None
        order, pool_size = torch.arange(len(self.lengths)), max(1, len(self.lengths))
        if self.seed is not None:
            random = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order, pool_size = torch.randperm(len(order), generator=random), self.batch_size * BUCKET_POOL
        if self.bucketing:
            pools = order.split(pool_size)
            order = torch.cat([pool[torch.argsort(self.lengths[pool], stable=True)] for pool in pools])
        batches = [batch.tolist() for batch in order.split(self.batch_size)]
        if self.bucketing and random is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]
        return batches


def deal(batch: Sequence[int], lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Share out a batch of indices: as many utterances to each share, give or take one, and about as many frames.

    The utterances are dealt by falling length, forwards and backwards in turns, so that every share also has one of the
    longest: the time that a step takes is that of its longest utterance. Within a share they keep the batch's order.
    Where there are more shares than utterances, the last ones are empty.
    """
    falling = sorted(range(len(batch)), key=lambda place: -lengths[batch[place]])
    places: list[list[int]] = [[] for _ in range(shares)]
    for rank, place in enumerate(falling):
        turn, seat = divmod(rank, shares)
        places[shares - 1 - seat if turn % 2 else seat].append(place)
    return [[batch[place] for place in sorted(share)] for share in places]
