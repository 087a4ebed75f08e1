"""Facts about classifiers: what can be learned they learn, what cannot they do not. And about counting errors."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from downstream.probing.corpus import Corpus
from downstream.probing.features import Utterances, stack_context
from downstream.probing.labels import NO_LABELS
from downstream.probing.probes import CLASSIFIERS, Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import equal_error_rate, error_by_phone, score_phones
from downstream.probing.speakers import (
    Trials,
    bootstrap_rates,
    cosine_scores,
    make_trials,
    read_trials,
    verification_scores,
)
from utils.system.errors import InputError

CLASSES = 4
QUICK = ProbeOptions(hidden_size=32, max_epochs=15)


def clusters(rows: int, seed: int) -> Labelled:
    """Classes that a plane separates, on very different scales; one input never changes."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (rows,), generator=random)
    features = torch.randn(rows, CLASSES + 1, generator=random) * 0.1
    features[torch.arange(rows), classes] += 1
    features = features * torch.tensor([1.0, 1e3, 1e-3, 10.0, 0.0]) + 5
    return Labelled(features, classes)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_classes_that_a_plane_separates_are_told_apart_without_error(classifier):
    probe, dev_error, _ = train_probe(clusters(2000, 0), clusters(300, 1), CLASSES, classifier, 0, QUICK)
    assert dev_error == 0 and probe.error(clusters(500, 2)) == 0


def test_shuffled_labels_give_chance():
    train, dev, test = (clusters(2000, seed) for seed in range(3))
    random = torch.Generator().manual_seed(3)
    train, dev, test = (
        Labelled(x.features, x.classes[torch.randperm(2000, generator=random)]) for x in (train, dev, test)
    )
    probe, *_ = train_probe(train, dev, CLASSES, "mlp1", 0, QUICK)
    assert probe.error(test) == pytest.approx(1 - 1 / CLASSES, abs=0.05)


def test_only_hidden_layers_learn_what_no_plane_separates():
    def exclusive_or(seed):
        points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed))
        return Labelled(points, (points.prod(1) > 0).long())

    sets = [exclusive_or(seed) for seed in range(2)]
    assert train_probe(*sets, 2, "linear", 0, QUICK)[1] > 0.4
    assert train_probe(*sets, 2, "mlp3", 0, QUICK)[1] < 0.05


def test_a_seed_decides_everything_and_the_global_generator_nothing():
    sets = clusters(500, 0), clusters(100, 1)
    trained = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        trained.append(train_probe(*sets, CLASSES, "mlp1", seed, QUICK)[0].log_posteriors(sets[1].features))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_the_best_epoch_on_dev_stays():
    train, dev = clusters(300, 0), Labelled(torch.randn(200, CLASSES + 1), torch.randint(CLASSES, (200,)))
    probe, error, epoch = train_probe(train, dev, CLASSES, "mlp1", 0, QUICK)
    assert probe.error(dev) == error and 1 <= epoch <= QUICK.max_epochs


def test_context_stacks_neighbours_and_repeats_an_utterances_ends():
    frames = torch.arange(4.0)[:, None] + torch.tensor([0.0, 0.5])  # (4, 2)
    stacked = stack_context(frames, 2, 1)
    assert stacked.shape == (4, 8)
    assert stacked[0].tolist() == [0, 0.5, 0, 0.5, 0, 0.5, 1, 1.5]
    assert stacked[3].tolist() == [1, 1.5, 2, 2.5, 3, 3.5, 3, 3.5]
    assert torch.equal(stack_context(frames, 0, 0), frames)


def test_a_segment_is_given_the_phone_of_the_highest_mean_log_posterior():
    posteriors = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]]).log().numpy()
    frames = posteriors, np.array([0, 0, 0, 1, 1]), np.array([3, 3, 3, 7, 7])
    scores = score_phones([frames])
    for borders in ([0, 2, 5], [0, 3, 5], [0, 1, 2, 3, 4, 5]):
        batches = [[part[a:b] for part in frames] for a, b in pairwise(borders)]
        assert [np.array_equal(*pair) for pair in zip(score_phones(batches), scores, strict=True)] == [True] * 3
    assert scores.frame_error == pytest.approx(3 / 5)  # two frames of the first segment, the last of the second
    assert scores.segment_error == pytest.approx(1 / 2)  # 0.7 * 0.2 < 0.3 * 0.8: the second is taken for phone 0
    assert scores.confusion.tolist() == [[1, 2], [1, 1]]


def test_error_by_phone_is_over_each_true_phones_frames():
    errors = error_by_phone(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]))
    assert errors[:2].tolist() == [0.25, 0.5] and np.isnan(errors[2])


@pytest.mark.parametrize(
    ("same", "other", "rate"),
    [
        ([3, 4, 5], [0, 1, 2], 0.0),
        ([0, 1, 2], [3, 4, 5], 1.0),
        ([1, 3], [0, 2], 0.5),
        ([1, 3, 4, 5], [0, 2, -1, -2], 0.25),
        ([0, 0, 0], [0, 0], 0.5),  # scores that tell nothing
    ],
)
def test_equal_error_rate_of_known_scores(same, other, rate):
    scores = np.array([*same, *other], float)
    is_same = np.arange(len(scores)) < len(same)
    assert equal_error_rate(scores, is_same) == pytest.approx(rate)
    assert equal_error_rate(-scores, ~is_same) == pytest.approx(rate)


def test_equal_error_rate_of_two_bells_is_that_of_the_textbook():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(2, 1, 20000), random.normal(0, 1, 60000)])
    assert equal_error_rate(scores, np.arange(80000) < 20000) == pytest.approx(0.1587, abs=0.004)  # 1 - Phi(1)


def test_trials_are_all_pairs_or_a_part_of_them_that_the_seed_decides():
    trials = make_trials(["ann", "bob", "ann"])
    assert list(zip(*(part.tolist() for part in trials), strict=True)) == [(0, 1, False), (0, 2, True), (1, 2, False)]
    many = ["ann", "bob"] * 50
    first, again, other = (make_trials(many, seed, max_trials=100) for seed in (0, 0, 1))
    assert len(first.is_same) == 100 and np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.is_same.sum() == 50
    few = make_trials([f"s{n // 2}" for n in range(100)], max_trials=1000)  # 50 of 4,950 pairs are of one speaker
    assert few.is_same.sum() == 50 and len({*zip(few.first, few.second, strict=True)}) == 1000
    assert make_trials(["ann"] * 60 + ["bob"], max_trials=1000).is_same.sum() == 940  # all 60 others
    of_many = make_trials([f"s{n % 9000}" for n in range(60_000)])  # of 1.8 billion pairs
    assert len({*zip(of_many.first.tolist(), of_many.second.tolist(), strict=True)}) == 20_000
    assert of_many.is_same.sum() == 10_000 and (of_many.first < of_many.second).all()
    with pytest.raises(InputError, match="nothing to verify"):
        make_trials(["ann", "ann"])


def test_trials_are_read_in_both_orders(tmp_path):
    path = tmp_path / "trials"
    path.write_text("1 u1 u2\n0 u1 u3\nu2 u3 nontarget\nu3 u3 target\n")
    trials = read_trials(path, ["u1", "u2", "u3"])
    assert trials.first.tolist() == [0, 0, 1, 2] and trials.second.tolist() == [1, 2, 2, 2]
    assert trials.is_same.tolist() == [True, False, False, True]
    path.write_text("1 2 target\n1 3 nontarget\n")
    assert read_trials(path, ["1", "2", "3"]).is_same.tolist() == [True, False]
    path.write_text("1 u1 u2\n0 u1 u9\n")
    with pytest.raises(InputError, match="trials:2: utterance u9 is not in the test set"):
        read_trials(path, ["u1", "u2"])
    path.write_text("same u1 u2\n")
    with pytest.raises(InputError, match="trials:1: a line should be"):
        read_trials(path, ["u1", "u2"])


def test_cosine_scores_are_cosines():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    trials = Trials(np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([True, False, False]))
    assert cosine_scores(vectors, trials) == pytest.approx([0, 0.5**0.5, 0])


def voices(speakers: int, seed: int, utterances: int = 6) -> tuple[np.ndarray, list[str]]:
    """Vectors of utterances, (utterances, 4), that differ less within a speaker, and their speakers."""
    random = np.random.default_rng(seed)
    means = np.repeat(random.normal(size=(speakers, 4)), utterances, axis=0)
    return means + 0.7 * random.normal(size=means.shape), [f"s{n // utterances}" for n in range(len(means))]


def test_an_interval_of_draws_of_speakers_covers_the_rate_of_all_speakers():
    vectors, speakers = voices(250, seed=1000)
    trials = make_trials(speakers, max_trials=200_000)
    truth = equal_error_rate(cosine_scores(vectors, trials), trials.is_same)
    covers = 0
    for seed in range(60):
        vectors, speakers = voices(20, seed)
        trials = make_trials(speakers)
        scores = cosine_scores(vectors, trials)
        low, high = np.percentile(bootstrap_rates(scores, trials, speakers, draws=200), [2.5, 97.5])
        covers += low <= truth <= high
    assert covers >= 52  # of 60; 57 if the interval were exact


def test_a_draw_is_the_rate_of_its_speakers_as_often_as_they_were_drawn(monkeypatch):
    vectors, speakers = voices(3, seed=0, utterances=4)
    trials = make_trials(speakers)
    scores = cosine_scores(vectors, trials)

    class Drawn:
        def multinomial(self, count, shares, size):
            assert (count, list(shares)) == (3, [1 / 3] * 3)
            return np.array([[2, 1, 0], [3, 0, 0], [1, 1, 1]])

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Drawn())
    rates = bootstrap_rates(scores, trials, speakers, draws=2)
    of_two = [
        index
        for index, (a, b) in enumerate(zip(trials.first, trials.second, strict=True))
        if {speakers[a], speakers[b]} <= {"s0", "s1"}
        for _ in range(1 if speakers[a] == speakers[b] == "s1" else 2)
    ]
    assert rates.tolist() == [  # three times one speaker has no trial of two, and is drawn again
        pytest.approx(equal_error_rate(scores[of_two], trials.is_same[of_two])),
        pytest.approx(equal_error_rate(scores, trials.is_same)),
    ]


def verification_corpus(train: list[str], test: list[str]) -> Corpus:
    """A corpus with the speakers of its utterances, and nothing else."""
    sets = {name: Utterances([f"{name}{n}" for n in range(len(of))], None, [], np.array([])) for name, of in
            (("train", train), ("test", test))}  # fmt: skip
    speakers = {f"{name}{n}": who for name, of in (("train", train), ("test", test)) for n, who in enumerate(of)}
    return Corpus(None, sets, NO_LABELS, speakers)


def test_lda_learns_from_others_than_the_speakers_of_a_trial():
    vectors, speakers = voices(6, seed=3)
    trials = make_trials(speakers)
    alone = [f"t{number}" for number in range(len(vectors))]  # each speaker of train has one utterance
    pooled = {name: SimpleNamespace(pooled=torch.from_numpy(vectors)) for name in ("train", "test")}
    scores = verification_scores(verification_corpus(alone, speakers), pooled, trials)["lda"]
    swapped = ["s1" if speaker == "s0" else speaker for speaker in speakers]  # who s0 is, is no part of its trials
    again = verification_scores(verification_corpus(alone, swapped), pooled, trials)["lda"]
    of_both = np.array([{speakers[a], speakers[b]} == {"s0", "s1"} for a, b in zip(*trials[:2], strict=True)])
    assert np.array_equal(scores[of_both], again[of_both])
    assert equal_error_rate(scores, trials.is_same) < 0.3
    assert verification_scores(verification_corpus(alone, ["s0", "s1"] * 18), pooled, trials)["lda"] is None
    from_train = verification_scores(verification_corpus(speakers, speakers), pooled, trials)["lda"]
    assert not np.array_equal(from_train, scores)


def test_lda_learns_from_speakers_of_two_utterances_each():
    means = np.random.default_rng(0).normal(size=(20, 80)).repeat(2, 0)
    vectors, speakers = means + np.random.default_rng(1).normal(size=(40, 80)) / 2, [f"s{n // 2}" for n in range(40)]
    pooled = {name: SimpleNamespace(pooled=torch.from_numpy(vectors)) for name in ("train", "test")}
    trials = make_trials(speakers)
    scores = verification_scores(verification_corpus(speakers, speakers), pooled, trials)["lda"]
    assert equal_error_rate(scores, trials.is_same) < 0.05
