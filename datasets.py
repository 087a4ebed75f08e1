"""Prepared utterances, and how they become batches.

dataset = LibriSpeech("librispeech_data/preprocessed/train-clean-360-hires-norm.blogmel")
x, length = dataset[0]          # (max_seq_len, mel_dim) float32, int
with BatchReader(num_workers=2) as reader:
    for batch in reader.batches(dataset, BatchOrder(dataset.lengths, 32, seed=0)):
        batch.inputs, batch.lengths  # (batch, longest, mel_dim), (batch,)
"""

import argparse
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from utils.audio.frames import frames_to_hours
from utils.corpus.batch_order import BatchOrder
from utils.corpus.batch_reader import Batch, BatchReader, read_frames
from utils.corpus.frame_spec import UNKNOWN, FrameSpec, common, refuse_mixture
from utils.corpus.normalization import NORMALIZATION_FILE
from utils.corpus.output_directory import AUDIO_KEY, MADE_FROM_FILE
from utils.corpus.prepared import TENSOR_SUFFIX, list_utterances, load_tensor
from utils.system.errors import InputError
from utils.system.files import read_json
from utils.system.reading import read_bytes

__all__ = ["Batch", "BatchOrder", "BatchReader", "LibriSpeech", "Sets", "draw", "find_split", "load_sets"]


class LibriSpeech(Dataset):
    """Utterances of one or more prepared directories, of LibriSpeech or any other corpus.

    Args:
        paths: a prepared directory, or several to be read as one set.
        longer_than: skip utterances of this many frames or fewer.
        fraction: the share of the other utterances to draw at random: 0.1 for a tenth of them.
        seed: seed of the draw, which does not depend on the order of the directories. With one seed, a smaller
            fraction is a subset of a larger one.
        segment_frames: cut each utterance into segments of equal length, of this many frames at most. Each is then
            what is called an utterance below.

    Attributes:
        files: the .pt file of each utterance.
        starts: the frame of its file at which each utterance starts.
        lengths: the true frames of each utterance.
        max_seq_len: frames that every utterance is padded to.
        mel_dim: size of a frame.
        num_whole: utterances before they were cut into segments.
        num_skipped: utterances skipped by `longer_than`.
        num_not_drawn: utterances skipped by `fraction`.
        frame_specs: how the frames of each directory were made.

    Raises:
        InputError: a directory is damaged or a file is missing, or no utterance is left.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        longer_than: int = 0,
        fraction: float = 1.0,
        seed: int = 0,
        segment_frames: int | None = None,
    ) -> None:
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise InputError(f"a directory is given twice: {', '.join(map(str, self.paths))}")
        self.files: list[Path] = []
        self.lengths: list[int] = []
        self.num_skipped = 0
        for path in self.paths:
            for utterance, length in list_utterances(path).items():
                if length <= longer_than:
                    self.num_skipped += 1
                    continue
                self.files.append(path / f"{utterance}{TENSOR_SUFFIX}")
                self.lengths.append(length)
        if not self.files:
            location = ", ".join(map(str, self.paths))
            raise InputError(f"{location}: no utterance of more than {longer_than} frames ({self.num_skipped} shorter)")
        self.longer_than, self.fraction, self.seed = longer_than, fraction, seed
        self.num_not_drawn = self._draw()
        self.max_seq_len, self.mel_dim = self._sizes()
        self.num_whole, self.starts = len(self.files), [0] * len(self.files)
        if segment_frames is not None:
            self._cut(segment_frames)
        self.frame_specs = {path: FrameSpec.of_directory(path) for path in self.paths}

    @property
    def frame_spec(self) -> FrameSpec:
        """How the frames were made, as far as all directories agree."""
        return common(self.frame_specs.values())

    def _draw(self) -> int:
        """Keep a random fraction of the utterances, one at least; returns how many were skipped."""
        if self.fraction == 1:
            return 0
        before = len(self)
        drawn = draw([self.utterance(index) for index in range(before)], self.fraction, self.seed)
        self.files, self.lengths = [self.files[i] for i in drawn], [self.lengths[i] for i in drawn]
        return before - len(self)

    def _cut(self, segment_frames: int) -> None:
        """Cut the utterances into segments, which take their places."""
        whole = list(zip(self.files, self.lengths, strict=True))
        self.files, self.starts, self.lengths = [], [], []
        for file, length in whole:
            count = math.ceil(length / segment_frames)
            bounds = [round(number * length / count) for number in range(count + 1)]
            self.files += [file] * count
            self.starts += bounds[:-1]
            self.lengths += [stop - start for start, stop in itertools.pairwise(bounds)]
        self.max_seq_len = min(self.max_seq_len, segment_frames)

    def splits(self) -> dict[str, list[int]]:
        """The indices of each directory's utterances, by the directory's name."""
        found = {path.name: [] for path in self.paths}
        for index, file in enumerate(self.files):
            found[file.parent.name].append(index)
        return {name: indices for name, indices in found.items() if indices}

    def _sizes(self) -> tuple[int, int]:
        """The frames that utterances are padded to, and the size of a frame, of all directories alike.

        Tensors of extracted features are not padded: they count as padded to the longest of them.
        """
        shortest: dict[Path, tuple[int, Path]] = {}  # of each directory, which shows whether it is padded
        for utterance in zip(self.lengths, self.files, strict=True):
            path = utterance[1].parent
            shortest[path] = min(utterance, shortest.get(path, utterance))
        shapes, longest = {}, max(self.lengths)
        for path, (length, file) in shortest.items():
            frames, mel_dim = load_tensor(file).shape
            shapes[path] = frames if frames > length else longest, mel_dim
        first = self.files[0].parent
        for path, shape in shapes.items():
            if shape != shapes[first]:
                raise InputError(f"{path} has tensors of {shape}, but {first} of {shapes[first]}; prepare both alike")
        return shapes[first]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One utterance.

        Returns:
            float32 (max_seq_len, mel_dim), zero on padding; and its true frames.

        Raises:
            InputError: the file is missing or damaged, or its sizes are not what the rest of the set says.
        """
        length = self.lengths[index]
        frames = read_frames(self.files[index], self.starts[index], length, self.mel_dim)
        return F.pad(frames, (0, 0, 0, self.max_seq_len - length)), length

    def __str__(self) -> str:
        segments = f" in {len(self)} segments" if len(self) > self.num_whole else ""
        size = f"{self.num_whole} utterances{segments}, {frames_to_hours(sum(self.lengths)):.2f} hours"
        skipped = f"{self.num_skipped} skipped (of {self.longer_than} frames or fewer)"
        drawn = (
            f", {self.num_not_drawn} not drawn ({self.fraction:g} are, by seed {self.seed})"
            if self.num_not_drawn
            else ""
        )
        return f"{size}, {skipped}{drawn}, {', '.join(map(str, self.paths))}"

    def utterance(self, index: int) -> str:
        """An utterance's id."""
        return self.files[index].name.removesuffix(TENSOR_SUFFIX)

    def fingerprint(self) -> str:
        """Hash that identifies the utterances, their order and lengths, how they were made, and their statistics.

        The first tensor stands for the audio files, whose times change when they are copied, and for the origin of a
        directory without a record, such as the released script's.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            made_from, statistics = path / MADE_FROM_FILE, path / NORMALIZATION_FILE
            record = read_json(made_from) if made_from.is_file() else {}
            is_of_audio = record.pop(AUDIO_KEY, None) is not None
            digest.update(json.dumps(record, sort_keys=True).encode())
            if statistics.is_file():
                digest.update(read_bytes(statistics))
            if is_of_audio or not record:
                for file in [file for file in self.files if file.parent == path][:1]:  # all may have been skipped
                    digest.update(read_bytes(file))
        for file, length in zip(self.files, self.lengths, strict=True):
            digest.update(f"{file.name} {length}\n".encode())
        return digest.hexdigest()


def draw(utterances: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The indices of a random fraction of utterances, one at least, in order.

    With one seed, a smaller fraction is a subset of a larger one.
    """
    draws = [hashlib.sha256(f"{seed} {utterance}".encode()).digest() for utterance in utterances]
    return sorted(sorted(range(len(draws)), key=draws.__getitem__)[: max(1, round(fraction * len(draws)))])


def find_split(root: str | Path, name: str) -> Path:
    """The directory of a split: `name` under `root`, or the only directory there whose name starts with it.

    Raises:
        InputError: no directory fits, or several do; it lists what is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a directory; make it with prepare_data.py, or give --librispeech_path")
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    fitting = [name] if name in there else [directory for directory in there if directory.startswith(name)]
    if len(fitting) != 1:
        found = f"{' and '.join(fitting)} start with it" if fitting else "no directory starts with it"
        raise InputError(f"split {name}: {found}; {root} holds {', '.join(there) or 'no directory'}")
    return root / fitting[0]


Sets = tuple[LibriSpeech, LibriSpeech]  # to train and to validate on


def load_sets(args: argparse.Namespace, start: FrameSpec = UNKNOWN) -> Sets:
    """The sets that the options of train_apc.py name, without the utterances too short for its time shift.

    Args:
        args: the options.
        start: the frames of the model that training starts from.

    Raises:
        InputError: a directory is not there or not whole, its frames have another size than the model's, or frames
            were made in different ways.
    """
    root, time_shift = args.librispeech_path, args.time_shift
    if args.segment_frames is not None and args.segment_frames <= 2 * time_shift:
        limit = f"twice --time_shift {time_shift}: half of one is all that may be left of an utterance"
        raise InputError(f"--segment_frames is {args.segment_frames}, not above {limit}")
    train_paths = [find_split(root, name) for name in args.train_split]
    train_set = LibriSpeech(train_paths, time_shift, args.train_fraction, args.seed, args.segment_frames)
    val_set = LibriSpeech([find_split(root, name) for name in args.val_split], time_shift)
    for dataset in (train_set, val_set):
        if dataset.mel_dim != args.feature_dim:
            sizes = f"frames of {dataset.mel_dim} but --feature_dim is {args.feature_dim}"
            raise InputError(f"{dataset.paths[0]} has {sizes}")
    specs = train_set.frame_specs | val_set.frame_specs | ({} if start.is_assumed else {args.init_from: start})
    if not args.any_frames:
        refuse_mixture(specs, "--any_frames trains on both")
    return train_set, val_set
