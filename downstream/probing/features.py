"""Features to probe: log Mel, log Mel with its neighbours, and the hidden states of each layer of an APC model.

An APC's hidden state at t depends on the frames up to t only; neighbours on both sides include later frames.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apc_model import APCModel
from datasets import LibriSpeech
from downstream.probing.labels import NO_PHONE, PhoneLabels
from utils.system.errors import InputError

BATCH_FRAMES = 16384  # padded frames in a batch


class Utterances(NamedTuple):
    """The utterances of a set, in memory."""

    ids: list[str]
    log_mel: list[torch.Tensor]  # each float32 (frames, mel_dim)
    phones: list[torch.Tensor]  # each int64 (frames,), NO_PHONE where a frame has none
    segments: np.ndarray  # int64 (labelled frames,), the index of each frame's segment (spoken phone) in the set

    @property
    def labels(self) -> torch.Tensor:
        """int64 (labelled frames,), in the order of the utterances."""
        phones = torch.cat(self.phones)
        return phones[phones != NO_PHONE]

    def labelled(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features of each utterance, (frames, size), as one matrix of the frames that have a phone."""
        return torch.cat([x[phones != NO_PHONE] for x, phones in zip(features, self.phones, strict=True)])


class Features(NamedTuple):
    """One kind of features of a set, in the order of its utterances."""

    frames: torch.Tensor  # float32 (labelled frames, size)
    pooled: torch.Tensor  # float32 (utterances, size), the mean over each utterance's frames


FeatureSets = dict[str, Features]  # by set: 'train', 'dev' and 'test'


def read_utterances(prepared: Path, labels: PhoneLabels) -> Utterances:
    """Read a prepared directory, and label its frames. Raises InputError where no frame of the set has a phone."""
    dataset = LibriSpeech(prepared)
    ids = [dataset.utterance(index) for index in range(len(dataset))]
    log_mel, phones, segments, first = [], [], [], 0
    for index, utterance in enumerate(ids):
        x, length = dataset[index]
        log_mel.append(x[:length].clone())
        of_frames = labels.of(utterance, length)
        phones.append(torch.from_numpy(of_frames.phones))
        spoken = of_frames.segments[of_frames.phones != NO_PHONE]
        segments.append(spoken + first)
        first += int(spoken.max(initial=0)) + 1
    if not sum(map(len, segments)):
        raise InputError(f"{labels.source} has no label for the {len(ids)} utterances of {prepared}, such as {ids[0]}")
    return Utterances(ids, log_mel, phones, np.concatenate(segments))


def stack_context(frames: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Each frame with its neighbours: (frames, size) -> (frames, (left + 1 + right) * size).

    The first and the last frame are repeated at the ends.
    """
    offsets = torch.arange(-left, right + 1)
    index = (torch.arange(len(frames))[:, None] + offsets).clamp(0, len(frames) - 1)  # (frames, left + 1 + right)
    return frames[index].flatten(1)


def log_mel_features(utterances: Utterances, context: tuple[int, int] = (0, 0)) -> Features:
    """Log Mel, with this many frames before and after each."""
    stacked = [stack_context(x, *context) if any(context) else x for x in utterances.log_mel]
    return Features(utterances.labelled(stacked), torch.stack([x.mean(0) for x in stacked]))


@torch.no_grad()
def model_features(model: APCModel, utterances: Utterances, device: torch.device) -> list[Features]:
    """The hidden states of each layer of a model (with a prenet, its output first), computed on a device."""
    model = model.to(device).eval()
    has_phone = [phones != NO_PHONE for phones in utterances.phones]
    counts = [int(mask.sum()) for mask in has_phone]
    starts = np.concatenate([[0], np.cumsum(counts)])  # of each utterance in the matrix of labelled frames
    num_layers, size = model.num_feats, model.rnn_config.hidden_size
    frames = torch.empty(num_layers, int(starts[-1]), size)
    pooled = torch.empty(num_layers, len(counts), size)
    for indices in _by_length(utterances):
        inputs = torch.nn.utils.rnn.pad_sequence([utterances.log_mel[i] for i in indices], batch_first=True)
        lengths = torch.tensor([len(utterances.log_mel[i]) for i in indices])
        feats = model.forward(inputs.to(device), lengths)[1].cpu()  # (num_layers, batch, longest, size)
        for row, i in enumerate(indices):
            of_utterance = feats[:, row, : lengths[row]]  # (num_layers, frames, size)
            frames[:, starts[i] : starts[i + 1]] = of_utterance[:, has_phone[i]]
            pooled[:, i] = of_utterance.mean(1)
    return [Features(frames[layer], pooled[layer]) for layer in range(num_layers)]


def _by_length(utterances: Utterances) -> Iterator[list[int]]:
    """Indices of utterances of similar length, in batches of up to BATCH_FRAMES padded frames or of one utterance."""
    order = sorted(range(len(utterances.ids)), key=lambda i: len(utterances.log_mel[i]))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(utterances.log_mel[i]) > BATCH_FRAMES:
            yield batch
            batch = []
        batch.append(i)
    yield batch
