"""Facts about recognition: CTC finds an alignment, errors are edits, shares are nested, and nothing leaks from test."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from apc_model import APCModel
from downstream.probing import recognition
from downstream.probing.corpus import Corpus
from downstream.probing.features import Utterances
from downstream.probing.labels import Alignment, PhoneLabels, read_labels
from downstream.probing.recognition import (
    Recogniser,
    RecognitionOptions,
    decode,
    encode,
    labelled_share,
    mean_and_std,
    phone_errors,
    phone_strings,
    random_batches,
    recognise,
)
from downstream.probing.splits import SETS, TEST, TRAIN
from utils import RNNConfig
from utils.system.errors import InputError

PHONES = ["A", "E", "K", "SIL", "T"]
SIZE = 6
CPU = torch.device("cpu")
QUICK = RecognitionOptions(hidden_size=16, learning_rate=2e-2, batch_size=8, min_steps=30, epochs=4)


def speech(count: int, seed: int, name: str) -> tuple[Utterances, dict[str, Alignment]]:
    """Utterances of random phones, none twice in a row, each a direction, of random lengths, with noise."""
    random = np.random.default_rng(seed)
    ids, frames, phones, alignments = [], [], [], {}
    for number in range(count):
        numbers = np.cumsum(random.integers(1, len(PHONES), random.integers(2, 7))) % len(PHONES)
        lengths = random.integers(5, 10, len(numbers))
        ends = 0.01 * np.cumsum(lengths)
        ids.append(f"{name}{number}")
        alignments[ids[-1]] = Alignment(ends - 0.01 * lengths, ends, numbers)
        phones.append(torch.from_numpy(np.repeat(numbers, lengths)))
        clean = torch.nn.functional.one_hot(phones[-1], SIZE).float()
        frames.append(3 * clean + 0.3 * torch.from_numpy(random.standard_normal(clean.shape)).float() + 1)
    return Utterances(ids, frames, phones, np.arange(sum(map(len, phones)))), alignments


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    sets, alignments = {}, {}
    for seed, (name, count) in enumerate(zip(SETS, (60, 10, 12), strict=True)):
        sets[name], of_set = speech(count, seed, name)
        alignments |= of_set
    return Corpus(None, sets, PhoneLabels(PHONES, alignments, "phones.ctm"), {})


def log_mel(corpus: Corpus) -> dict[str, list[torch.Tensor]]:
    return {name: utterances.log_mel for name, utterances in corpus.sets.items()}


def run(corpus: Corpus, fraction: float = 1, seed: int = 0, options: RecognitionOptions = QUICK) -> dict:
    return recognise(corpus, log_mel(corpus), fraction, seed, options, CPU)[0]


def test_ctc_learns_what_was_said_without_being_told_when(corpus):
    result = run(corpus)
    assert result["error"] < 0.1 and result["dev_error"] < 0.1
    assert result["utterances"] == 60 and 1 <= result["epoch"] <= 4
    assert result["minutes"] == pytest.approx(sum(map(len, corpus.sets[TRAIN].log_mel)) / 6000, rel=0.01)


def test_features_that_tell_nothing_are_recognised_badly(corpus):
    noise = {name: [torch.randn_like(x) for x in of_set] for name, of_set in log_mel(corpus).items()}
    assert recognise(corpus, noise, 1, 0, QUICK._replace(epochs=1), CPU)[0]["error"] > 0.5


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_training_may_have_any_number_of_steps(corpus, steps):
    options = QUICK._replace(batch_size=60, min_steps=steps, epochs=1)
    assert run(corpus, 1 / 60, options=options)["utterances"] == 1


def test_recognisers_are_trained_for_as_many_steps_on_every_share(corpus, monkeypatch):
    steps = []

    def counted(data, count, batch_size):
        steps.append(count)
        return random_batches(data, count, batch_size)

    monkeypatch.setattr(recognition, "random_batches", counted)
    for fraction in (1, 0.5, 1 / 60):
        run(corpus, fraction, options=QUICK._replace(min_steps=1, epochs=1))
    assert steps == [8] * 3  # 60 utterances in batches of 8


def test_the_error_rate_counts_edits_over_all_phones():
    assert phone_errors([[1, 2, 3]], [[1, 2, 3]]) == 0
    assert phone_errors([[1, 3], []], [[1, 2, 3], [4]]) == 2 / 4  # two deletions
    assert phone_errors([[1, 2, 2, 3], [5]], [[1, 2, 3], [4]]) == 2 / 4  # an insertion and a substitution
    assert phone_errors([[1, 1, 1]], [[2]]) == 3


def test_decoding_drops_repetitions_then_blanks():
    best = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0, 3], [0, 0, 4, 4, 4, 4, 4, 4, 4]])
    posteriors = torch.nn.functional.one_hot(best, 5).float()
    assert decode(posteriors, torch.tensor([9, 2])) == [[1, 1, 2, 3], []]


def test_strings_hold_the_phones_of_the_frames_without_silence(tmp_path):
    path = tmp_path / "phones.ctm"
    path.write_text("a 1 0 .1 SIL\na 1 .1 .1 K\na 1 .2 .1 A\na 1 .3 .1 A\na 1 .4 .1 T\n")
    labels = read_labels(path)
    assert [labels.phones[phone] for phone in labels.spoken("a", 49)] == ["SIL", "K", "A", "A", "T"]
    assert [labels.phones[phone] for phone in labels.spoken("a", 34)] == ["SIL", "K", "A", "A"]  # cut after 0.355 s
    assert len(labels._replace(late_ms=100).spoken("a", 34)) == 5
    of_frames = [torch.from_numpy(labels.of(name, 49).phones) for name in ("a", "b")]
    corpus = Corpus(None, {TRAIN: Utterances(["a", "b"], of_frames, of_frames, np.arange(0))}, labels, {})
    strings = phone_strings(corpus, TRAIN, ["SIL"])
    assert list(strings) == [0]  # what is said in b is not known
    assert strings[0].tolist() == [labels.phones.index(phone) + 1 for phone in "KAAT"]
    empty = Corpus(None, {TRAIN: Utterances(["b"], of_frames[1:], of_frames[1:], np.arange(0))}, labels, {})
    with pytest.raises(InputError, match=r"phones\.ctm has no phones for most of the frames"):
        phone_strings(empty, TRAIN, ["SIL"])


def test_smaller_shares_are_parts_of_larger_ones_and_the_seed_draws_them(corpus):
    def chosen(fraction, seed=0):
        return set(labelled_share(corpus, log_mel(corpus), TRAIN, fraction, seed, ["SIL"]).chosen)

    shares = [chosen(fraction) for fraction in (1, 0.5, 0.25, 0.1, 0.001)]
    assert [len(share) for share in shares] == [60, 30, 15, 6, 1]
    assert all(small < large for large, small in pairwise(shares))
    assert chosen(0.25, 1) != chosen(0.25)


def test_every_utterance_of_a_share_is_trained_on_before_one_comes_again(corpus):
    data = labelled_share(corpus, log_mel(corpus), TRAIN, 0.25, 0, ["SIL"])
    batches = random_batches(data, 5, 6)
    assert [len(batch) for batch in batches] == [6] * 5
    assert np.bincount(torch.cat(batches)).tolist() == [2] * 15


def test_what_was_said_in_test_changes_nothing_but_the_error(corpus):
    options = QUICK._replace(epochs=1)
    alignments = dict(corpus.labels.alignments)
    for utterance in corpus.sets[TEST].ids:
        alignments[utterance] = alignments[utterance]._replace(phones=alignments[utterance].phones * 0)
    other = corpus._replace(labels=corpus.labels._replace(alignments=alignments))
    honest, changed = run(corpus, options=options), run(other, options=options)
    assert honest.pop("error") != changed.pop("error") and honest == changed
    quieter = {**log_mel(corpus), TEST: [0 * x for x in corpus.sets[TEST].log_mel]}
    (again,) = recognise(corpus, quieter, 1, 0, options, CPU)
    assert again.pop("error") == 1 and again == honest


def test_a_seed_decides_everything_and_the_global_generator_nothing(corpus):
    results = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        results.append(run(corpus, 0.5, seed, QUICK._replace(epochs=1)))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1] != results[2]


def test_padding_changes_no_posterior(corpus):
    torch.manual_seed(0)
    model = Recogniser(torch.zeros(SIZE), torch.ones(SIZE), 5, QUICK).eval()
    frames = corpus.sets[TRAIN].log_mel[:3]
    lengths = torch.tensor([len(x) for x in frames])
    together, steps = model(torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), lengths)
    for row, x in enumerate(frames):
        alone, _ = model(x[None], lengths[row : row + 1])
        assert torch.allclose(together[row, : steps[row]], alone[0], atol=1e-5)


def test_a_step_sees_190_ms_and_no_more():
    torch.manual_seed(0)
    model = Recogniser(torch.zeros(SIZE), torch.ones(SIZE), 5, QUICK).eval()
    x, lengths = torch.randn(1, 60, SIZE), torch.tensor([60])
    before, _ = model(x, lengths)
    x[:, 30] += 1
    changed = (model(x, lengths)[0] != before).any(2)[0].nonzero().flatten()
    assert changed.tolist() == list(range(7, 14))  # of steps at every third frame, those within 90 ms


def test_fine_tuning_trains_a_copy_of_the_network(corpus):
    torch.manual_seed(0)
    network = APCModel(SIZE, None, RNNConfig(SIZE, 2, 2, 0.0, residual=True))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    features = {
        name: [network(x[None], [len(x)])[1][1, 0].detach() for x in of_set] for name, of_set in log_mel(corpus).items()
    }
    options = QUICK._replace(epochs=2, encoder_learning_rate=1e-2)
    frozen, tuned = recognise(corpus, features, 1, 0, options, CPU, network, 1)
    assert all(torch.equal(before[name], weight) for name, weight in network.state_dict().items())
    assert [frozen] == recognise(corpus, features, 1, 0, options, CPU)
    assert tuned["dev_error"] < frozen["dev_error"] - 0.1
    _, same = recognise(corpus, features, 1, 0, options._replace(encoder_learning_rate=0), CPU, network, 1)
    assert same == frozen | {"epoch": 0}  # fine-tuning starts where the recogniser ended


def test_a_frozen_network_and_its_features_are_the_same(corpus):
    torch.manual_seed(0)
    network = APCModel(SIZE, None, RNNConfig(SIZE, 8, 2, 0.0, residual=True)).eval()
    x = corpus.sets[TRAIN].log_mel[0]
    lengths = torch.tensor([len(x)])
    features = network.forward(x[None], lengths)[1][0]
    assert torch.allclose(encode(network, x[None], lengths, 0), features, atol=1e-6)


def test_frames_are_standardised_by_those_of_the_share(corpus):
    data = labelled_share(corpus, log_mel(corpus), TRAIN, 0.1, 0, ["SIL"])
    std, mean = torch.std_mean(torch.cat([data.inputs[index] for index in data.chosen]), 0, correction=0)
    for found, expected in zip(mean_and_std(data), (mean, std), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
