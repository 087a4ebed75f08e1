"""Facts about classifiers: what can be learned they learn, what cannot they do not. And about counting errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from downstream.probing.features import stack_context
from downstream.probing.probes import CLASSIFIERS, Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import equal_error_rate, error_by_phone, score_phones
from downstream.probing.speakers import Trials, cosine_scores, make_trials, read_trials
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
    with pytest.raises(InputError, match="nothing to verify"):
        make_trials(["ann", "ann"])


def test_trials_are_read_in_both_orders(tmp_path):
    path = tmp_path / "trials"
    path.write_text("1 u1 u2\n0 u1 u3\nu2 u3 nontarget\nu3 u3 target\n")
    trials = read_trials(path, ["u1", "u2", "u3"])
    assert trials.first.tolist() == [0, 0, 1, 2] and trials.second.tolist() == [1, 2, 2, 2]
    assert trials.is_same.tolist() == [True, False, False, True]
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
