"""Prepared utterances, and how they become batches.

dataset = LibriSpeech("librispeech_data/preprocessed/train-clean-360-hires-norm.blogmel")
x, length = dataset[0]          # (max_seq_len, mel_dim) float32, int
with BatchReader(num_workers=2) as reader:
    for batch in reader.batches(dataset, BatchOrder(dataset.lengths, 32, seed=0)):
        batch.inputs, batch.lengths  # (batch, longest, mel_dim), (batch,)
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.audio.frames import frames_to_hours
from utils.corpus.batch_order import BatchOrder, deal
from utils.corpus.prepared import TENSOR_SUFFIX, list_utterances, load_tensor, load_utterance
from utils.system.errors import InputError, one_line
from utils.system.reading import read_bytes
from utils.system.signals import start_worker

TOLD_BY = ("made_from.json", "normalization.json")  # what a directory was made from, and how it was normalised


class LibriSpeech(Dataset):
    """Utterances of one or more prepared directories; not LibriSpeech's alone.

    Args:
        paths: a prepared directory, or several to be read as one set.
        longer_than: leave out utterances of this many frames or fewer; `left_out` counts them.
        fraction: how much of what is left to take, of its utterances: 0.1 is every tenth, drawn by `seed`.
        seed: of that draw, which neither the order of directories nor of utterances changes; of two fractions the
            smaller one's utterances are among the larger one's.

    Attributes:
        files: the .pt file of each utterance.
        lengths: the true frames of each utterance.
        max_seq_len: frames that every utterance is padded to.
        mel_dim: size of a frame.
        left_out: utterances too short to be in the set.
        not_drawn: utterances left out by `fraction`.

    Raises:
        InputError: a directory is damaged or misses a file, or no utterance is left.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], longer_than: int = 0, fraction: float = 1.0, seed: int = 0
    ) -> None:
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise InputError(f"a directory is given twice: {', '.join(map(str, self.paths))}")
        self.files: list[Path] = []
        self.lengths: list[int] = []
        self.left_out = 0
        for path in self.paths:
            for utterance, length in list_utterances(path).items():
                if length <= longer_than:
                    self.left_out += 1
                    continue
                self.files.append(path / f"{utterance}{TENSOR_SUFFIX}")
                self.lengths.append(length)
        if not self.files:
            where = ", ".join(map(str, self.paths))
            raise InputError(f"{where}: no utterance of more than {longer_than} frames ({self.left_out} shorter)")
        self.longer_than, self.fraction, self.seed = longer_than, fraction, seed
        self.not_drawn = self._draw()
        self.max_seq_len, self.mel_dim = self._sizes()

    def _draw(self) -> int:
        """Keep a random fraction of the utterances, one at least; returns how many were left out."""
        if self.fraction == 1:
            return 0
        before = len(self)
        draws = [hashlib.sha256(f"{self.seed} {self.utterance(index)}".encode()).digest() for index in range(before)]
        drawn = sorted(sorted(range(before), key=draws.__getitem__)[: max(1, round(self.fraction * before))])
        self.files, self.lengths = [self.files[i] for i in drawn], [self.lengths[i] for i in drawn]
        return before - len(self)

    def splits(self) -> dict[str, list[int]]:
        """The indices of each directory's utterances, by the directory's name."""
        found = {path.name: [] for path in self.paths}
        for index, file in enumerate(self.files):
            found[file.parent.name].append(index)
        return {name: indices for name, indices in found.items() if indices}

    def _sizes(self) -> tuple[int, int]:
        """The frames that utterances are padded to, and the size of a frame, of all directories alike."""
        firsts = {file.parent: file for file in reversed(self.files)}
        shapes = {path: tuple(load_tensor(file).shape) for path, file in firsts.items()}
        for path, shape in shapes.items():
            if shape != shapes[self.files[0].parent]:
                raise InputError(f"{path} has tensors of {shape}, but {self.files[0].parent} of "
                                 f"{shapes[self.files[0].parent]}; prepare both alike")  # fmt: skip
        return shapes[self.files[0].parent]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One utterance.

        Returns:
            float32 (max_seq_len, mel_dim), zero on padding; and its true frames.

        Raises:
            InputError: the file is missing or damaged, or its sizes are not what the rest of the set says.
        """
        return _read(self.files[index], self.lengths[index], self.mel_dim), self.lengths[index]

    def __str__(self) -> str:
        size = f"{len(self)} utterances, {frames_to_hours(sum(self.lengths)):.2f} hours"
        left_out = f"{self.left_out} left out (of {self.longer_than} frames or fewer)"
        drawn = f", {self.not_drawn} not drawn ({self.fraction:g} are, by seed {self.seed})" if self.not_drawn else ""
        return f"{size}, {left_out}{drawn}, {', '.join(map(str, self.paths))}"

    def utterance(self, index: int) -> str:
        """An utterance's id."""
        return self.files[index].name.removesuffix(TENSOR_SUFFIX)

    def fingerprint(self) -> str:
        """A digest of the utterances, their order and lengths, and what they were made from: is it still the same set?

        Of a directory that does not say what it was made from (the released script's do not), the first tensor is
        looked at.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            told = [path / name for name in TOLD_BY if (path / name).is_file()]
            first = next((file for file in self.files if file.parent == path), None)
            for file in told or ([first] if first else []):
                digest.update(read_bytes(file))
        for file, length in zip(self.files, self.lengths, strict=True):
            digest.update(f"{file.name} {length}\n".encode())
        return digest.hexdigest()


class Batch(NamedTuple):
    """Utterances trimmed to the longest of them.

    Attributes:
        inputs: float32 (batch, longest, mel_dim), zero on padding.
        lengths: int64 (batch,).
        indices: where each stands in the dataset.
    """

    inputs: torch.Tensor
    lengths: torch.Tensor
    indices: list[int]


class _Wanted(NamedTuple):
    """What a worker needs to know of a batch in order to read it."""

    files: list[Path]
    lengths: list[int]
    mel_dim: int
    indices: list[int]


class _WantedBatches(Sampler[_Wanted]):
    """The batches to read next."""

    wanted: Iterable[_Wanted] = ()

    def __iter__(self) -> Iterator[_Wanted]:
        return iter(self.wanted)


class _Assembled(Dataset):
    """Batches by what is wanted of them, so that workers read, trim and assemble them."""

    def __getitem__(self, wanted: _Wanted) -> Batch | InputError:
        files, lengths, mel_dim, indices = wanted
        try:
            utterances = [_read(file, length, mel_dim) for file, length in zip(files, lengths, strict=True)]
        except InputError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback: `batches` raises it
        except OSError as error:
            return InputError(f"{error.filename}: {error.strerror}")
        inputs = torch.zeros(len(indices), max(lengths, default=0), mel_dim)  # (batch, longest, mel_dim)
        for row, x, length in zip(inputs, utterances, lengths, strict=True):
            row[:length] = x[:length]
        return Batch(inputs, torch.tensor(lengths, dtype=torch.int64), indices)


def _read(file: Path, length: int, mel_dim: int) -> torch.Tensor:
    """One utterance, float32 (max_seq_len, mel_dim), whose sizes are checked."""
    x = load_utterance(file, length)
    if x.size(1) != mel_dim:
        raise InputError(f"{file} has frames of {x.size(1)}, the other utterances of {mel_dim}")
    return x


class BatchReader:
    """Reads batches of any datasets, by worker processes that are started once; use as a context.

    Enter it before the process has threads, which those of PyTorch's process group are: a process that is forked while
    a thread holds one of the interpreter's locks waits for that lock for ever.

    Args:
        num_workers: processes that read and assemble; 0 reads in this one.

    Raises:
        InputError: a worker process died.
    """

    def __init__(self, num_workers: int = 0) -> None:
        self._order = _WantedBatches()
        self._loader = DataLoader(
            _Assembled(),
            sampler=self._order,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the loader seeds its workers: not from the generator that dropout uses
        )

    def __enter__(self) -> "BatchReader":
        iter(self._loader)  # starts the workers; nothing is wanted of them yet
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self._loader.num_workers:  # now, not when the garbage collector comes by
            self._loader._iterator._shutdown_workers()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            # PyTorch raises this wherever the main process happens to be
            raise InputError(f"{_dead_worker(error)}; continue with the same command and --resume") from error

    def batches(self, dataset: LibriSpeech, order: Iterable[list[int]], pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of a pass over a dataset. The next pass ends this one.

        Args:
            dataset: the utterances.
            order: which of them make up each batch: a BatchOrder, or a list of lists of indices.
            pin_memory: page-locked memory, from which copies to a GPU need not be waited for.

        Raises:
            InputError: a file is missing or damaged, or a worker process died.
        """
        files, lengths = dataset.files, dataset.lengths
        self._order.wanted = (
            _Wanted([files[i] for i in batch], [lengths[i] for i in batch], dataset.mel_dim, batch) for batch in order
        )
        try:
            for batch in self._loader:
                if isinstance(batch, InputError):
                    raise batch
                yield batch._replace(inputs=batch.inputs.pin_memory()) if pin_memory else batch
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # the last three are what is seen where the process dies after it announced a batch and before handing it
            # over
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise _dead_worker(error) from error


def _dead_worker(error: Exception) -> InputError:
    told = one_line(error, 200)
    return InputError(f"a data loading process died ({told}); if memory ran out, lower --load_data_workers")


class Share(NamedTuple):
    """What one process reads of a batch.

    Attributes:
        indices: the utterances of the whole batch.
        parts: this process's share of them, in one batch or several; a part may be empty.
    """

    indices: list[int]
    parts: list[Batch]


def shares(
    reader: BatchReader, dataset: LibriSpeech, order: BatchOrder, rank: int, size: int, parts: int, pin_memory: bool
) -> Iterator[Share]:
    """A process's share of each batch, as `BatchReader.batches`.

    Args:
        reader: reads them.
        dataset: the utterances.
        order: which of them make up each batch, the same for all processes.
        rank, size: which process this is, of how many.
        parts: how many parts it reads its share in.
        pin_memory: as for `BatchReader.batches`.
    """
    wholes = list(order)
    mine = [part for whole in wholes for part in deal(whole, dataset.lengths, size * parts)[rank::size]]
    with closing(reader.batches(dataset, mine, pin_memory)) as read:
        for whole in wholes:
            yield Share(whole, list(islice(read, parts)))


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


def load_split(
    root: str | Path, names: Sequence[str], mel_dim: int, time_shift: int, fraction: float = 1.0, seed: int = 0
) -> LibriSpeech:
    """The directories of a split as one set, less the utterances too short to train on.

    Args:
        root: the directory that holds prepared directories.
        names: their names, or what only theirs start with.
        mel_dim: the size that frames must have.
        time_shift: n, in frames; utterances of n frames or fewer are left out.
        fraction, seed: how much of it to take, and the seed that draws it.

    Raises:
        InputError: a directory is not there or not whole, or its frames have another size.
    """
    dataset = LibriSpeech([find_split(root, name) for name in names], time_shift, fraction, seed)
    if dataset.mel_dim != mel_dim:
        raise InputError(f"{dataset.paths[0]} has frames of {dataset.mel_dim} but --feature_dim is {mel_dim}")
    return dataset
