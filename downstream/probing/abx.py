"""ABX: do features tell triphones apart that differ in their middle phone only? No classifier is trained.

A and X are two triphones of the same three phones, B has another middle phone between the same neighbours. It is an
error if X is nearer to B than to A, and half an error if both are equally near (the task of the ZeroSpeech challenges;
Schatz et al., Interspeech 2013). All three are one speaker's (within), or A and B are one speaker's and X is another's
(across). Errors are averaged over the triples of a cell (context, phones, speakers), then over contexts and speakers of
X, over speakers of A and B, and over ordered pairs of phones, as fastabx does. Chance is 50 %.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from downstream.probing.corpus import Corpus
from downstream.probing.dtw import segment_distances
from downstream.probing.features import FeatureSets, Utterances
from downstream.probing.labels import NO_PHONE, SILENCE
from downstream.probing.probes import Rows
from downstream.probing.splits import TEST
from utils.audio.frames import FRAMES_PER_SECOND
from utils.system.errors import InputError
from utils.system.files import atomic_write
from utils.system.workers import in_parts

ABX_TASKS = ("within", "across")
MAX_PAIRS = 1 << 18  # of triphones whose distances are held at a time, approximately
ITEM_HEADER = "#file onset offset #phone prev-phone next-phone speaker"


class AbxOptions(NamedTuple):
    """Limits of the sampling, and the non-speech phones."""

    max_items: int = 10  # tokens of each triphone per speaker
    max_speakers: int = 5  # of X for each triphone and speaker of A, across speakers
    seed: int = 0
    silence: tuple[str, ...] = SILENCE


class Triphones(NamedTuple):
    """The triphones of a set: arrays of int64 (triphones,)."""

    utterances: np.ndarray  # indices of utterances
    onsets: np.ndarray  # the first frame in the utterance
    rows: np.ndarray  # the first frame among the set's labelled frames
    lengths: np.ndarray  # in frames
    phones: np.ndarray  # int64 (triphones, 3): the phone before, the phone, the phone after


class Cell(NamedTuple):
    """Triphones in one context to compare, int64 arrays of their indices. Within a speaker X is drawn from A."""

    phones: tuple[int, int]  # of A and X, and of B
    speakers: tuple[str, str]  # of A and B, and of X
    context: tuple[int, int]
    a: np.ndarray
    b: np.ndarray
    x: np.ndarray


def find_triphones(utterances: Utterances, silence: Iterable[int]) -> Triphones:
    """All sequences of three phones without silence, and without a frame between them that has no phone."""
    has_phone = [phones.numpy() != NO_PHONE for phones in utterances.phones]
    counts = [int(mask.sum()) for mask in has_phone]
    utterance = np.repeat(np.arange(len(counts)), counts)  # of each labelled frame
    time = np.concatenate([np.flatnonzero(mask) for mask in has_phone])  # of each labelled frame in its utterance
    segment, rows, lengths = np.unique(utterances.segments, return_index=True, return_counts=True)
    phones = utterances.labels.numpy()[rows]
    neighbours = np.add.outer(np.arange(1, len(segment) - 1), [-1, 0, 1])  # (candidates, 3), numbers of segments
    is_triphone = ~np.isin(phones[neighbours], list(silence)).any(1)
    for left, right in (neighbours[:, :2].T, neighbours[:, 1:].T):
        is_triphone &= segment[left] + 1 == segment[right]
        is_triphone &= utterance[rows[left]] == utterance[rows[right]]
        is_triphone &= time[rows[left]] + lengths[left] == time[rows[right]]
    neighbours = neighbours[is_triphone]
    start = rows[neighbours[:, 0]]
    return Triphones(utterance[start], time[start], start, lengths[neighbours].sum(1), phones[neighbours])


def make_cells(triphones: Triphones, speakers: list[str], across: bool, options: AbxOptions) -> Iterator[Cell]:
    """Every comparison that the triphones allow; the seed draws those beyond the limits.

    Args:
        triphones: of a set.
        speakers: of each utterance of the set.
        across: X is another speaker's.
        options: the limits, and the seed.
    """
    random = np.random.default_rng(options.seed)
    groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))  # context -> speaker -> phone -> triphones
    for index, (before, phone, after) in enumerate(triphones.phones.tolist()):
        groups[before, after][speakers[triphones.utterances[index]]][phone].append(index)
    for context, by_speaker in sorted(groups.items()):
        drawn = {
            speaker: {phone: _draw(found, options.max_items, random) for phone, found in sorted(by_phone.items())}
            for speaker, by_phone in sorted(by_speaker.items())
        }
        for speaker, by_phone in drawn.items():
            for phone, a in by_phone.items():
                others = [name for name, of_other in drawn.items() if name != speaker and phone in of_other]
                others = [others[i] for i in _draw(range(len(others)), options.max_speakers, random)]
                if not across:
                    others = [speaker] if len(a) > 1 else []
                for name in others:
                    for other, b in by_phone.items():
                        if other != phone:
                            yield Cell((phone, other), (speaker, name), context, a, b, drawn[name][phone])


def _draw(found: Iterable[int], most: int, random: np.random.Generator) -> np.ndarray:
    """All of them, or at most this many at random, in order."""
    found = np.array(found, np.int64)
    return found if len(found) <= most else np.sort(random.choice(found, most, replace=False))


def cell_error(cell: Cell, to_a: np.ndarray, to_b: np.ndarray) -> float:
    """The share of errors of a cell, given the distances of A (a, x) and of B (b, x) from X."""
    to_a, to_b = to_a[:, None], to_b[None]
    errors = (to_a > to_b) + 0.5 * (to_a == to_b)  # (a, b, x)
    is_triple = np.broadcast_to((cell.a[:, None] != cell.x)[:, None], errors.shape)  # X is not A itself
    return float(errors[is_triple].mean())


def mean_error(cells: list[Cell], errors: list[float]) -> float:
    """Average over contexts and speakers of X, then over speakers of A and B, then over pairs of phones."""
    of_speakers, of_phones = defaultdict(list), defaultdict(list)
    for cell, error in zip(cells, errors, strict=True):
        of_speakers[cell.phones, cell.speakers[0]].append(error)
    for (phones, _), found in of_speakers.items():
        of_phones[phones].append(np.mean(found))
    return float(np.mean([np.mean(found) for found in of_phones.values()]))


def score_cells(cells: list[Cell], triphones: Triphones, frames: Rows, device: torch.device, name: str) -> list[float]:
    """The share of errors of each cell.

    Args:
        cells: the comparisons.
        triphones: of a set.
        frames: float32 (labelled frames, size), the features of the set.
        device: where to compute distances.
        name: for the progress bar.

    Raises:
        InputError: features are NaN or infinite.
    """
    errors = []
    with tqdm(total=len(cells), unit="cell", desc=f"ABX {name}", disable=None, leave=False) as bar:
        for chunk in in_parts(cells, lambda cell: (len(cell.a) + len(cell.b)) * len(cell.x), MAX_PAIRS):
            pairs = [np.sort(_pairs(cell), axis=0) for cell in chunk]  # distances are symmetric
            codes = [first * len(triphones.rows) + second for first, second in pairs]
            unique = np.unique(np.concatenate(codes))
            first, second = (torch.from_numpy(part) for part in np.divmod(unique, len(triphones.rows)))
            rows, lengths = torch.from_numpy(triphones.rows), torch.from_numpy(triphones.lengths)
            distances = segment_distances(frames, rows, lengths, first, second, device).numpy()
            if not np.isfinite(distances).all():
                raise InputError("the features hold NaN or infinite values: their distances mean nothing")
            for cell, of_cell in zip(chunk, codes, strict=True):
                to_a, to_b = np.split(distances[np.searchsorted(unique, of_cell)], [len(cell.a) * len(cell.x)])
                errors.append(cell_error(cell, to_a.reshape(len(cell.a), -1), to_b.reshape(len(cell.b), -1)))
            bar.update(len(chunk))
    return errors


def _pairs(cell: Cell) -> np.ndarray:
    """int64 (2, pairs): each A with each X, then each B with each X."""
    first = np.concatenate([cell.a, cell.b])
    return np.stack([np.repeat(first, len(cell.x)), np.tile(cell.x, len(first))])


def abx_errors(
    corpus: Corpus, features: FeatureSets, options: AbxOptions, device: torch.device, name: str = TEST
) -> dict[str, float | None]:
    """ABX errors of a set (fractions): 'within' and 'across' speakers, None where there is nothing to compare.

    Raises:
        InputError: the features are not finite.
    """
    triphones, errors = corpus_triphones(corpus, options, name), {}
    frames = corpus.sets[name].labelled(features[name])
    for task in ABX_TASKS:
        cells = list(make_cells(triphones, corpus.speakers_of(name), task == "across", options))
        scores = score_cells(cells, triphones, frames, device, task)
        errors[task] = mean_error(cells, scores) if cells else None
    return errors


def corpus_triphones(corpus: Corpus, options: AbxOptions, name: str = TEST) -> Triphones:
    """The triphones of one of a corpus's sets."""
    silence = [number for number, phone in enumerate(corpus.labels.phones) if phone in options.silence]
    return find_triphones(corpus.sets[name], silence)


def write_items(path: Path, corpus: Corpus, triphones: Triphones, name: str = TEST) -> None:
    """Write the triphones of a set as a ZeroSpeech item file, which fastabx reads.

    Frame t lasts from t to t + 1 hundredths of a second there, so the same frames are compared.
    """
    utterances, phones = corpus.sets[name].ids, corpus.labels.phones
    lines = [ITEM_HEADER]
    for utterance, onset, length, around in zip(
        triphones.utterances, triphones.onsets, triphones.lengths, triphones.phones, strict=True
    ):
        times = (f"{time / FRAMES_PER_SECOND:.2f}" for time in (onset, onset + length))
        before, phone, after = (phones[number] for number in around)
        speaker = "_".join(corpus.speakers[utterances[utterance]].split())
        lines.append(" ".join([utterances[utterance], *times, phone, before, after, speaker]))
    with atomic_write(path) as file:
        file.write("\n".join([*lines, ""]).encode())
