"""Phone recognition with little labelled speech: a small convolutional recogniser, trained by CTC on frozen features.

The recogniser is the same for all features: standardised frames go through three convolutions, the first with a stride
of three frames, to log posteriors of phones and of CTC's blank. A step sees 190 ms. A recurrent layer would see the
whole utterance, and learns utterances by heart where labels are few. Silence does not count as a phone: it is left to
the blank. It is trained on a share of the training set, in epochs of as many steps as the whole set takes, whatever the
share; the epoch with the lowest error on dev is kept. One seed determines the share, the initial weights and the
order of the data. A smaller share is a part of a larger one. Fine-tuning starts from the trained recogniser, and trains
the network that computes the features with it for a few epochs.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from apc_model import APCModel
from datasets import draw
from downstream.probing.corpus import Corpus
from downstream.probing.labels import NO_PHONE, SILENCE
from downstream.probing.probes import MIN_STD
from downstream.probing.splits import SETS, TRAIN
from utils.audio.frames import frames_to_minutes
from utils.rnn.packing import Packing
from utils.system.errors import InputError

BLANK = 0  # the class of phone n is n + 1
EVAL_BATCH = 32  # utterances
POOL = 8  # batches that are sorted by length
PROJECTED, STRIDE = 128, 3  # the size of features in the first convolution, and how many frames make a step
MIN_LABELLED = 0.5  # of an utterance's frames: of one with fewer, what was said is not known

Batch = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]  # padded inputs, lengths, strings


class RecognitionOptions(NamedTuple):
    """The recogniser's sizes, and the settings of training it."""

    hidden_size: int = 256  # channels of the convolutions
    dropout: float = 0.3  # after each convolution
    learning_rate: float = 3e-3  # the highest: it rises over the first tenth of training, and falls to 0
    encoder_learning_rate: float = 5e-4  # the same of fine-tuning
    batch_size: int = 8  # utterances
    min_steps: int = 60  # of an epoch, at least, half as many of fine-tuning
    epochs: int = 12
    fine_tune_epochs: int = 2  # after those, where an epoch takes many times as long
    silence: tuple[str, ...] = SILENCE


class Recogniser(nn.Module):
    """[encode, standardise, project, convolve three times, Linear]: features, or log Mel, to log posteriors."""

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, num_phones: int, options: RecognitionOptions, layer: int = 0
    ) -> None:
        super().__init__()
        self.layer, self.dropout = layer, options.dropout
        self.encoder: APCModel | None = None  # where there is one, the inputs are log Mel, of which this is a layer
        self.register_buffer("mean", mean)  # (size,)
        self.register_buffer("scale", torch.where(std > MIN_STD, 1 / std, 0.0))  # (size,)
        self.project = nn.Linear(len(mean), PROJECTED)
        channels = options.hidden_size
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(PROJECTED, channels, 7, STRIDE, 3)] + [nn.Conv1d(channels, channels, 3, 1, 1) for _ in range(2)]
        )
        self.output = nn.Linear(channels, num_phones + 1)

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, seq_len, size), int64 (batch,) -> (batch, steps, num_phones + 1), int64 (batch,) steps of each."""
        if self.encoder is not None:
            inputs = encode(self.encoder, inputs, lengths, self.layer)
        steps = -(-lengths // STRIDE)
        weight = self.project.weight * self.scale  # standardising is a part of it
        x = F.linear(inputs.float(), weight, self.project.bias - weight @ self.mean) * frame_mask(lengths, inputs)
        for convolution in self.convolutions:
            x = F.relu(convolution(x.transpose(1, 2)).transpose(1, 2))
            x = F.dropout(F.layer_norm(x, x.shape[2:]), self.dropout, self.training) * frame_mask(steps, x)
        return F.log_softmax(self.output(x), 2), steps


def frame_mask(lengths: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Where x, (batch, seq_len, size), is no padding: bool (batch, seq_len, 1)."""
    return (torch.arange(x.size(1), device=x.device) < lengths.to(x.device)[:, None])[:, :, None]


def encode(model: APCModel, inputs: torch.Tensor, lengths: torch.Tensor, layer: int) -> torch.Tensor:
    """The features of one layer: (batch, seq_len, mel_dim) -> (batch, seq_len, hidden_size), zero on padding."""
    batch, seq_len = inputs.shape[:2]
    packing = Packing.from_lengths(lengths, seq_len, inputs.device)
    (packed,), _ = model.encode(packing.pack(inputs), packing, layers=[layer])
    return packing.unpack(packed, batch, seq_len)


class Transcribed(NamedTuple):
    """Utterances and what is said in them."""

    inputs: Sequence[torch.Tensor]  # of all utterances of a set, each (frames, size)
    chosen: list[int]  # indices of the utterances
    strings: list[torch.Tensor]  # of each chosen utterance, int64 (phones,), classes
    drawn_from: int  # utterances

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Padded inputs (batch, longest, size), lengths (batch,) and strings of batches of chosen utterances."""
        for rows in order:
            inputs = [self.inputs[self.chosen[row]] for row in rows]
            yield pad_sequence(inputs, True), torch.tensor(list(map(len, inputs))), [self.strings[row] for row in rows]


def phone_strings(corpus: Corpus, name: str, silence: Sequence[str]) -> dict[int, torch.Tensor]:
    """The classes of the phones spoken in each utterance of a set, by its index, without silence.

    Utterances with phones for less than half of their frames are not among them: what was said is not known.
    """
    labels, utterances = corpus.labels, corpus.sets[name]
    is_silence = np.isin(labels.phones, list(silence))
    strings = {}
    for index, (utterance, of_frames) in enumerate(zip(utterances.ids, utterances.phones, strict=True)):
        if float((of_frames != NO_PHONE).float().mean()) >= MIN_LABELLED:
            phones = labels.spoken(utterance, len(of_frames))
            strings[index] = torch.from_numpy(phones[~is_silence[phones]] + 1)
    if not any(map(len, strings.values())):
        raise InputError(
            f"{labels.source} has no phones for most of the frames of any utterance of {name}: nothing to recognise"
        )
    return strings


def left_out(corpus: Corpus, silence: Sequence[str]) -> list[str]:
    """A sentence for each set with utterances that are not recognised. Raises InputError where all of a set are."""
    counts = {name: (len(corpus.sets[name].ids), len(phone_strings(corpus, name, silence))) for name in SETS}
    reason = "have phones for less than half of their frames: they are not recognised."
    return [f"{count - kept} of {count} utterances of {name} {reason}" for name, (count, kept) in counts.items()
            if kept < count]  # fmt: skip


def labelled_share(
    corpus: Corpus, features: dict[str, Sequence[torch.Tensor]], name: str, fraction: float, seed: int,
    silence: Sequence[str],
) -> Transcribed:  # fmt: skip
    """Utterances of a set that have phones: a share of them, one at least, drawn by the seed."""
    strings = phone_strings(corpus, name, silence)
    indices = list(strings)
    drawn = draw([corpus.sets[name].ids[index] for index in indices], fraction, seed)
    chosen = [indices[number] for number in drawn]
    return Transcribed(features[name], chosen, [strings[index] for index in chosen], len(indices))


def phone_errors(hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """The phone error rate: insertions, deletions and substitutions, as a share of the phones of the references."""
    from rapidfuzz.distance import Levenshtein

    errors = sum(Levenshtein.distance(*pair) for pair in zip(hypotheses, references, strict=True))
    return errors / sum(map(len, references))


def decode(log_posteriors: torch.Tensor, steps: torch.Tensor) -> list[list[int]]:
    """The best classes of each step, (batch, steps, classes), without repetitions and blanks."""
    best = log_posteriors.argmax(2).cpu()
    runs = [torch.unique_consecutive(row[:length]) for row, length in zip(best, steps, strict=True)]
    return [run[run != BLANK].tolist() for run in runs]


def ctc_loss(log_posteriors: torch.Tensor, steps: torch.Tensor, strings: list[torch.Tensor]) -> torch.Tensor:
    """The CTC loss per phone of a batch; an utterance with too few steps for its phones does not count."""
    lengths = torch.tensor([len(string) for string in strings])
    targets = torch.cat(strings).to(log_posteriors.device)
    loss = F.ctc_loss(
        log_posteriors.transpose(0, 1), targets, steps, lengths, BLANK, reduction="sum", zero_infinity=True
    )
    return loss / lengths.sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: Recogniser, data: Transcribed, device: torch.device) -> float:
    """The phone error rate."""
    model.eval()
    hypotheses = []
    for inputs, lengths, _ in data.batches(torch.arange(len(data.chosen)).split(EVAL_BATCH)):
        hypotheses += decode(*model(inputs.to(device), lengths))
    return phone_errors(hypotheses, [string.tolist() for string in data.strings])


def recognise(
    corpus: Corpus, features: dict[str, Sequence[torch.Tensor]], fraction: float, seed: int,
    options: RecognitionOptions, device: torch.device, encoder: APCModel | None = None, layer: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    """Train a recogniser on a share of train, choose the epoch on dev, and recognise test.

    Args:
        corpus: the phones of its sets.
        features: by set, those of each utterance, (frames, size).
        fraction: the share of train's utterances.
        seed: determines the share, the initial weights and the order of the data.
        options: sizes and settings.
        device: where to compute.
        encoder: a network that is then trained on with the recogniser. It is not changed.
        layer: the encoder's layer that the features are of.

    Returns:
        The result with the features as they are, and with an encoder that of fine-tuning: dev_error and error (phone
        error rates of dev and test, fractions), the labelled minutes and utterances, and the epoch that was kept; of
        fine-tuning it is 0 where no epoch was better than before.
    """

    def share(inputs: dict[str, Sequence[torch.Tensor]]) -> list[Transcribed]:
        shares = {name: fraction if name == TRAIN else 1 for name in SETS}
        return [labelled_share(corpus, inputs, name, of, seed, options.silence) for name, of in shares.items()]

    train, dev, test = share(features)
    minutes = frames_to_minutes(sum(len(train.inputs[index]) for index in train.chosen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(*mean_and_std(train), len(corpus.labels.phones), options, layer).to(device)
        results = [train_recogniser(model, train, dev, test, options, device)]
        if encoder is not None:
            model.encoder = copy.deepcopy(encoder).to(device)
            inputs = share({name: corpus.sets[name].log_mel for name in SETS})
            results.append(train_recogniser(model, *inputs, options, device))
    return [{**result, "minutes": minutes, "utterances": len(train.chosen)} for result in results]


def mean_and_std(data: Transcribed) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation of the features of utterances, (size,) each."""
    count, total, squares = 0, 0.0, 0.0
    for index in data.chosen:
        frames = data.inputs[index].double()
        count, total, squares = count + len(frames), total + frames.sum(0), squares + frames.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def train_recogniser(
    model: Recogniser,
    train: Transcribed,
    dev: Transcribed,
    test: Transcribed,
    options: RecognitionOptions,
    device: torch.device,
) -> dict[str, float]:
    """Train, and leave the weights of the best epoch on dev; its number, and the errors of dev and test."""
    epochs, rate, min_steps = options.epochs, options.learning_rate, options.min_steps
    utterances = train.drawn_from  # small shares are repeated
    best_epoch, best_error, best_weights = 0, math.inf, {}
    if model.encoder is not None:
        epochs, rate, min_steps = options.fine_tune_epochs, options.encoder_learning_rate, math.ceil(min_steps / 2)
        utterances = len(train.chosen)
        best_error, best_weights = evaluate(model, dev, device), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = max(math.ceil(utterances / options.batch_size), min_steps)
    total = epochs * steps
    rise = 0.2 if total == 10 else 0.1  # PyTorch divides by rise * total - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=rise, cycle_momentum=False)
    for epoch in range(1, epochs + 1):
        model.train()
        for inputs, lengths, strings in train.batches(random_batches(train, steps, options.batch_size)):
            loss = ctc_loss(*model(inputs.to(device), lengths), strings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        error = evaluate(model, dev, device)
        if error < best_error:
            best_epoch, best_error, best_weights = epoch, error, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    return {"dev_error": best_error, "error": evaluate(model, test, device), "epoch": best_epoch}


def random_batches(data: Transcribed, steps: int, batch_size: int) -> list[torch.Tensor]:
    """Batches of utterances in a random order, each as often as it takes: a batch for each step of an epoch."""
    repeats = math.ceil(steps * batch_size / len(data.chosen))
    order = torch.cat([torch.randperm(len(data.chosen)) for _ in range(repeats)])[: steps * batch_size]
    lengths = torch.tensor([len(data.inputs[index]) for index in data.chosen])
    batches = []
    for pool in order.split(POOL * batch_size):  # batches of similar lengths take fewer steps of the layer
        batches += pool[torch.argsort(lengths[pool])].split(batch_size)
    return [batches[number] for number in torch.randperm(len(batches))]
