"""Features to probe: log Mel, log Mel with its neighbours, and the hidden states of each layer of an APC model.

They lie in files, and are read as they are needed: a corpus may be larger than memory.

An APC's hidden state at t depends on the frames up to t only; neighbours on both sides include later frames.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apc_model import APCModel
from datasets import LibriSpeech
from downstream.probing.frame_file import FrameFile
from downstream.probing.labels import NO_PHONE, PhoneLabels
from utils.system.errors import InputError

BATCH_FRAMES = 16384  # padded frames in a batch


class Features(Sequence[torch.Tensor]):
    """One kind of features of a set: for each utterance, in order, float32 (frames, size).

    Args:
        file: the frames of the utterances, one after another.
        lengths: int64 (utterances,), the frames of each utterance.
        context: how many frames before and after each are stacked with it. The first and the last frame of an
            utterance are repeated at its ends.
    """

    def __init__(self, file: FrameFile, lengths: np.ndarray, context: tuple[int, int] = (0, 0)) -> None:
        self.file, self.lengths, self.context = file, lengths, context
        self.ends = np.cumsum(lengths)  # of each utterance, in frames of the set
        self.starts = self.ends - lengths

    def with_context(self, before: int, after: int) -> "Features":
        """The same frames with so many before and after each."""
        return Features(self.file, self.lengths, (before, after))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """The features of an utterance: (frames, size)."""
        frames = self.file.read(int(self.starts[index]), int(self.lengths[index]))
        return stack_context(frames, *self.context) if any(self.context) else frames

    @cached_property
    def pooled(self) -> torch.Tensor:
        """The mean over each utterance's frames: float32 (utterances, size)."""
        return torch.stack([frames.mean(0) for frames in self])


class LabelledFrames:
    """The features of some frames of a set, as a matrix, float32 (rows, size), whose rows are read when asked for.

    Args:
        features: those of all frames.
        frames: int64 (rows,), the numbers of the frames in the set.
    """

    def __init__(self, features: Features, frames: np.ndarray) -> None:
        self._frames, self._starts, self._ends = frames, features.starts, features.ends
        self._before, after = features.context
        self._width = self._before + 1 + after
        self._windows = features.file.windows(int(self._ends[-1]), self._width)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Some rows: (rows, size)."""
        frames = self._frames[rows if isinstance(rows, slice) else rows.numpy()]
        first = np.maximum(frames - self._before, 0)
        taken = self._windows[first]  # (rows, width * size)
        if self._width > 1:
            utterances = np.searchsorted(self._ends, frames, side="right")
            starts, ends = self._starts[utterances, None], self._ends[utterances, None]
            index = np.clip(frames[:, None] + np.arange(-self._before, self._width - self._before), starts, ends - 1)
            index -= first[:, None]  # (rows, width), in the window
            at_an_end = (index != np.arange(self._width)).any(1)
            windows = taken[at_an_end].reshape(-1, self._width, taken.shape[1] // self._width)
            taken[at_an_end] = np.take_along_axis(windows, index[at_an_end, :, None], 1).reshape(-1, taken.shape[1])
        return torch.from_numpy(taken)


class Utterances(NamedTuple):
    """The utterances of a set."""

    ids: list[str]
    log_mel: Features
    phones: list[torch.Tensor]  # each int64 (frames,), NO_PHONE where a frame has none
    segments: np.ndarray  # int64 (labelled frames,), the index of each frame's segment (spoken phone) in the set
    sha256: str = ""  # of all log Mel

    @property
    def labels(self) -> torch.Tensor:
        """int64 (labelled frames,), in the order of the utterances."""
        phones = torch.cat(self.phones)
        return phones[phones != NO_PHONE]

    def labelled(self, features: Features) -> LabelledFrames:
        """The features of the frames that have a phone, in the order of `labels`."""
        return LabelledFrames(features, np.flatnonzero(torch.cat(self.phones).numpy() != NO_PHONE))


FeatureSets = dict[str, Features]  # by set: 'train', 'dev' and 'test'


def read_utterances(prepared: Path, labels: PhoneLabels) -> Utterances:
    """Read a prepared directory, and label its frames. Raises InputError where none of the labels is for the set."""
    dataset = LibriSpeech(prepared)
    ids = [dataset.utterance(index) for index in range(len(dataset))]
    file, phones, segments, row, first = FrameFile(prepared.parent, dataset.mel_dim), [], [], 0, 0
    digest = hashlib.sha256()
    for index, utterance in enumerate(ids):
        x, length = dataset[index]
        file.write(row, x[:length])
        digest.update(x[:length].numpy())
        row += length
        of_frames = labels.of(utterance, length)
        phones.append(torch.from_numpy(of_frames.phones))
        spoken = of_frames.segments[of_frames.phones != NO_PHONE]
        segments.append(spoken + first)
        first += int(spoken.max(initial=0)) + 1
    if labels.alignments and not sum(map(len, segments)):
        raise InputError(f"{labels.source} has no label for the {len(ids)} utterances of {prepared}, such as {ids[0]}")
    log_mel = Features(file, np.array(dataset.lengths))
    return Utterances(ids, log_mel, phones, np.concatenate(segments), digest.hexdigest())


def stack_context(frames: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Each frame with its neighbours: (frames, size) -> (frames, (left + 1 + right) * size).

    The first and the last frame are repeated at the ends.
    """
    offsets = torch.arange(-left, right + 1)
    index = (torch.arange(len(frames))[:, None] + offsets).clamp(0, len(frames) - 1)  # (frames, left + 1 + right)
    return frames[index].flatten(1)


@torch.no_grad()
def model_features(
    model: APCModel, utterances: Utterances, device: torch.device, layers: Sequence[int], directory: Path
) -> dict[int, Features]:
    """The hidden states of layers of a model (with a prenet, its output is layer 0), in a file in a directory."""
    model = model.to(device).eval()
    lengths, starts = utterances.log_mel.lengths, utterances.log_mel.starts
    files = {layer: FrameFile(directory, model.rnn_config.hidden_size) for layer in layers}
    for indices in _by_length(lengths):
        inputs = torch.nn.utils.rnn.pad_sequence([utterances.log_mel[i] for i in indices], batch_first=True)
        feats = model.forward(inputs.to(device), torch.from_numpy(lengths[indices]))[1].cpu()
        for layer, file in files.items():  # feats is (num_layers, batch, longest, size)
            for of_utterance, i in zip(feats[layer], indices, strict=True):
                file.write(int(starts[i]), of_utterance[: lengths[i]])
    return {layer: Features(file, lengths) for layer, file in files.items()}


def _by_length(lengths: np.ndarray) -> Iterator[list[int]]:
    """Indices of utterances of similar length, in batches of up to BATCH_FRAMES padded frames or of one utterance."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > BATCH_FRAMES:
            yield batch
            batch = []
        batch.append(i)
    yield batch
