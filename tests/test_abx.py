"""Facts about ABX errors: known cases, the same numbers as plain loops, and which triphones are compared."""

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream.probing.abx import AbxOptions, abx_errors, find_triphones, make_cells, write_items
from downstream.probing.corpus import Corpus
from downstream.probing.dtw import angles, segment_distances, warp
from downstream.probing.features import Features, Utterances
from downstream.probing.frame_file import FrameFile
from downstream.probing.labels import NO_PHONE, PhoneLabels
from downstream.probing.splits import TEST
from utils.system.errors import InputError

PHONES = ["A", "E", "K", "SIL", "T"]
CPU = torch.device("cpu")
ALL = AbxOptions(max_items=1000, max_speakers=1000)


def corpus_of(words: list[tuple[str, str]], frames: int = 3) -> Corpus:
    """Utterances of (speaker, phones in a string, - for silence, . for frames without a phone)."""
    phones, segments, first = [], [], 0
    for _, word in words:
        numbers = [PHONES.index("SIL" if letter == "-" else letter) if letter != "." else NO_PHONE for letter in word]
        phones.append(torch.tensor(numbers).repeat_interleave(frames))
        spoken = np.flatnonzero(np.array(numbers) != NO_PHONE)
        segments.append(np.repeat(np.arange(len(spoken)) + first, frames))
        first += len(spoken)
    ids = [f"u{number}" for number in range(len(words))]
    utterances = Utterances(ids, [x[:, None].float() for x in phones], phones, np.concatenate(segments))
    speakers = {name: speaker for name, (speaker, _) in zip(ids, words, strict=True)}
    return Corpus(None, {TEST: utterances}, PhoneLabels(PHONES, {}, "phones.ctm"), speakers)


def features_of(corpus: Corpus, frames: torch.Tensor) -> dict[str, Features]:
    """The features of the labelled frames of a corpus."""
    phones = corpus.sets[TEST].phones
    has_phone = torch.cat(phones) != NO_PHONE
    of_all = torch.zeros(len(has_phone), frames.size(1))
    of_all[has_phone] = frames.float()
    file = FrameFile(Path(tempfile.gettempdir()), frames.size(1))
    file.write(0, of_all)
    return {TEST: Features(file, np.array([len(x) for x in phones]))}


def many_words(count: int) -> list[tuple[str, str]]:
    """Utterances of three speakers, three phones each."""
    random = np.random.default_rng(0)
    return [(random.choice(["ann", "bob", "cid"]), "".join(random.choice(list("AEKT"), 3))) for _ in range(count)]


def errors_of(corpus: Corpus, frames: torch.Tensor, options: AbxOptions = ALL) -> dict[str, float | None]:
    return abx_errors(corpus, features_of(corpus, frames), options, CPU)


def plain_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """The mean angle along the best warping path, cell by cell in double precision."""
    x, y = (part.double() / part.double().norm(dim=1, keepdim=True) for part in (x, y))
    best = {}
    for i, j in product(range(len(x)), range(len(y))):
        before = [best[cell] for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if cell in best]
        cost, steps = min(before, default=(0.0, 0))
        chord = float((x[i] - y[j]).norm())
        best[i, j] = cost + 2 / np.pi * np.arcsin(min(1, chord / 2)), steps + 1
    cost, steps = best[len(x) - 1, len(y) - 1]
    return cost / steps


def plain_abx(corpus: Corpus, frames: torch.Tensor, across: bool) -> float:
    """Every triple in plain loops."""
    triphones, speakers = find_triphones(corpus.sets[TEST], [PHONES.index("SIL")]), corpus.speakers_of(TEST)
    pieces = [frames[row : row + n] for row, n in zip(triphones.rows, triphones.lengths, strict=True)]
    around = triphones.phones.tolist()
    who = [speakers[u] for u in triphones.utterances]
    triples = {}
    for a, b, x in product(range(len(pieces)), repeat=3):
        same_context = around[a][::2] == around[b][::2] == around[x][::2]
        if not same_context or a == x or around[a][1] != around[x][1] or around[a][1] == around[b][1]:
            continue
        if who[a] != who[b] or (who[x] != who[a]) != across:
            continue
        to_a, to_b = plain_distance(pieces[a], pieces[x]), plain_distance(pieces[b], pieces[x])
        error = 0.5 if abs(to_a - to_b) < 1e-9 else float(to_a > to_b)
        key = (around[a][1], around[b][1]), who[a], (*around[a][::2], who[x])
        triples.setdefault(key, []).append(error)
    for _ in range(3):
        grouped = {}
        for key, errors in triples.items():
            grouped.setdefault(key[:-1], []).append(np.mean(errors))
        triples = grouped
    return float(np.mean(triples[()]))


@pytest.mark.parametrize("frames", [1, 3])
def test_errors_are_those_of_plain_loops(frames):
    corpus = corpus_of(many_words(150), frames)
    random = torch.Generator().manual_seed(0)
    labels = corpus.sets[TEST].labels
    noisy = torch.nn.functional.one_hot(labels, len(PHONES)) + 0.7 * torch.randn(len(labels), 5, generator=random)
    found = errors_of(corpus, noisy)
    for task in ("within", "across"):
        assert 0.02 < found[task] < 0.48
        assert found[task] == pytest.approx(plain_abx(corpus, noisy, task == "across"), abs=1e-7)


def test_features_on_a_grid_tie_and_ties_are_half_an_error():
    corpus = corpus_of(many_words(120), 2)
    grid = torch.randint(1, 3, (len(corpus.sets[TEST].labels), 1), generator=torch.Generator().manual_seed(0))
    grid = torch.cat([grid, torch.ones_like(grid)], 1).float()  # two directions
    for task, error in errors_of(corpus, grid).items():
        assert error == pytest.approx(plain_abx(corpus, grid, task == "across"), abs=1e-7)
    assert errors_of(corpus, torch.full((len(grid), 3), 0.3)) == {"within": 0.5, "across": 0.5}


def test_labels_as_features_make_no_error_and_random_features_are_chance():
    words = [(speaker, word) for speaker in ("ann", "bob") for word in ("KAT", "KET", "TAK", "TEK") for _ in range(12)]
    corpus = corpus_of(words)
    labels = corpus.sets[TEST].labels
    assert errors_of(corpus, torch.nn.functional.one_hot(labels).float()) == {"within": 0, "across": 0}
    noise = torch.randn(len(labels), 20, generator=torch.Generator().manual_seed(0))
    for error in errors_of(corpus, noise, AbxOptions()).values():
        assert error == pytest.approx(0.5, abs=0.03)


def test_a_distance_does_not_depend_on_the_order_or_on_the_company():
    random = torch.Generator().manual_seed(0)
    frames = torch.randn(500, 7, generator=random)
    lengths = torch.tensor([1, 1, 2, 5, 9, 40, 3, 1])
    starts = torch.tensor([0, 1, 7, 20, 60, 100, 300, 499])
    first, second = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    together = segment_distances(frames, starts, lengths, first, second, CPU).view(8, 8)
    assert torch.equal(together, together.T)
    for i, j in product(range(8), repeat=2):
        pieces = [frames[starts[k] : starts[k] + lengths[k]] for k in (i, j)]
        assert float(together[i, j]) == pytest.approx(plain_distance(*pieces), abs=1e-6)
    assert (together.diagonal() == 0).all()


def test_the_path_of_least_sum_counts_and_of_equal_ones_the_shortest():
    costs = torch.tensor([[[1.0, 5.0, 9.0], [5.0, 2.0, 5.0], [9.0, 5.0, 3.0]]])
    assert warp(costs, torch.tensor([3]), torch.tensor([3])).tolist() == [2]  # 1 + 2 + 3, on the diagonal
    costs[0, 1, 1] = 20.0  # around it: 1 + 5 + 5 + 3
    assert warp(costs, torch.tensor([3]), torch.tensor([3])).tolist() == [3.5]
    assert warp(costs, torch.tensor([1]), torch.tensor([2])).tolist() == [3]
    assert warp(torch.ones(1, 4, 6), torch.tensor([4]), torch.tensor([6])).tolist() == [1]


def test_an_angle_is_a_fraction_of_half_a_turn():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [5.0, 5.0]]])
    assert angles(vectors, vectors[:, :1])[0, :, 0].tolist() == pytest.approx([0, 0.5, 1, 0.25])


def test_triphones_hold_no_silence_no_gap_and_one_utterance():
    corpus = corpus_of([("ann", "KAT-KE"), ("ann", "TKA.TE"), ("bob", "EKAT")])
    triphones = find_triphones(corpus.sets[TEST], [PHONES.index("SIL")])
    words = ["".join(PHONES[phone] for phone in phones) for phones in triphones.phones]
    assert words == ["KAT", "TKA", "EKA", "KAT"]
    assert triphones.utterances.tolist() == [0, 1, 2, 2] and triphones.onsets.tolist() == [0, 0, 0, 3]
    assert triphones.rows.tolist() == [0, 18, 33, 36] and triphones.lengths.tolist() == [9] * 4


def test_an_item_file_names_the_same_frames(tmp_path):
    corpus = corpus_of([("ann lee", "-KAT"), ("bob", "TEK")])
    write_items(tmp_path / "items", corpus, find_triphones(corpus.sets[TEST], [PHONES.index("SIL")]))
    assert (tmp_path / "items").read_text().splitlines() == [
        "#file onset offset #phone prev-phone next-phone speaker",
        "u0 0.03 0.12 A K T ann_lee",
        "u1 0.00 0.09 E T K bob",
    ]


def test_limits_bound_what_is_compared_and_the_seed_draws_it():
    words = [(speaker, word) for speaker in "pqrst" for word in ("KAT", "KET") for _ in range(6)]
    corpus = corpus_of(words)
    triphones, speakers = find_triphones(corpus.sets[TEST], []), corpus.speakers_of(TEST)

    def cells(across, **options):
        return list(make_cells(triphones, speakers, across, AbxOptions(**options)))

    assert len(cells(False)) == 10 and len(cells(True, max_speakers=2)) == 20 and len(cells(True)) == 40
    assert {len(part) for cell in cells(True, max_items=4) for part in cell[3:]} == {4}
    drawn = [[cell.a.tolist() for cell in cells(False, max_items=4, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_compared_has_no_error():
    assert errors_of(corpus_of([("ann", "KAT")]), torch.ones(9, 2)) == {"within": None, "across": None}
    corpus = corpus_of([("ann", "KAT"), ("ann", "KET"), ("bob", "KAT")])  # a single K A T of each: no X for A within
    assert errors_of(corpus, torch.ones(27, 2)) == {"within": None, "across": 0.5}
    with pytest.raises(InputError, match="NaN or infinite"):
        errors_of(corpus, torch.full((27, 2), float("nan")))
