"""Distances between speech segments of different lengths: angles between frames, averaged along a warping path.

Many pairs of segments are computed at a time, one anti-diagonal of their distance matrices after the other.
"""

import math

import torch
from torch.nn import functional as F

from downstream.probing.probes import Rows

MAX_CELLS = 1 << 20  # of the distance matrices of a batch, approximately
MAX_VALUES = 1 << 24  # of the frames of a batch, approximately


def angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angles between frames, as fractions of π: (pairs, n, size) and (pairs, m, size) -> (pairs, n, m).

    Computed from chords, so that equal frames are at a distance of 0; the arc cosine of a rounded 1 is not 0.
    """
    first, second = F.normalize(first, dim=2), F.normalize(second, dim=2)
    chords = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return (chords / 2).clamp_(max=1).asin_().mul_(2 / math.pi)


def warp(costs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The mean cost along the warping path with the least sum of costs; of equal sums, along the shortest path.

    A path leads from the first cell to the last by steps to the next row, the next column, or both.

    Args:
        costs: (pairs, n, m), padded at the ends with anything.
        rows, columns: int64 (pairs,), the true sizes of each matrix, 1 at least.

    Returns:
        (pairs,)
    """
    pairs, n, m = costs.shape
    row, column = torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij")  # (n, m)
    sums = costs.new_full((n + m, n + 1, pairs), math.inf)  # by anti-diagonal and row, both from 1
    sums[row + column + 1, row + 1] = costs.permute(1, 2, 0)
    steps = torch.ones_like(sums)
    for diagonal in range(2, n + m):
        inner = slice(max(1, diagonal - m + 1), min(n, diagonal) + 1)  # the rows of this diagonal's cells
        above = slice(inner.start - 1, inner.stop - 1)
        before = [(diagonal - 1, above), (diagonal - 1, inner), (diagonal - 2, above)]
        least = torch.minimum(torch.minimum(sums[before[0]], sums[before[1]]), sums[before[2]])  # (cells, pairs)
        shortest = torch.full_like(least, math.inf)
        for cells in before:
            shortest = torch.where(sums[cells] == least, torch.minimum(shortest, steps[cells]), shortest)
        sums[diagonal, inner] += least
        steps[diagonal, inner] += shortest
    last = (rows + columns - 1, rows, torch.arange(pairs, device=costs.device))
    return sums[last] / steps[last]


def segment_distances(
    frames: Rows,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """The mean angle along the best warping path between two segments, for each of many pairs. It is symmetric.

    Args:
        frames: float32 (frames, size), on the CPU.
        starts, lengths: int64 (segments,), the first frame of each segment, and how many there are.
        first, second: int64 (pairs,), indices of segments.
        device: where to compute.

    Returns:
        float32 (pairs,) on the CPU.
    """
    is_longer = lengths[second] > lengths[first]
    first, second = torch.where(is_longer, second, first), torch.where(is_longer, first, second)
    order = torch.argsort(lengths[first] * (int(lengths.max()) + 1) + lengths[second])
    distances = torch.empty(len(order))
    frame_size, end = frames[:1].size(1), len(order)
    while end:  # from the longest on
        n = int(lengths[first[order[end - 1]]])
        size = max(1, min(MAX_CELLS // (n * n), MAX_VALUES // (2 * n * frame_size)))
        batch = order[max(0, end - size) : end]
        end -= len(batch)
        padded = [_padded(frames, starts[index[batch]], lengths[index[batch]]).to(device) for index in (first, second)]
        sizes = [lengths[index[batch]].to(device) for index in (first, second)]
        distances[batch] = warp(angles(*padded), *sizes).float().cpu()
    return distances


def _padded(frames: Rows, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(segments, longest, size): the frames of segments, the last one repeated."""
    index = starts[:, None] + torch.minimum(torch.arange(int(lengths.max())), lengths[:, None] - 1)
    return frames[index.flatten()].unflatten(0, index.shape)
