"""Batches of prepared utterances, read and assembled by worker processes."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.corpus.batch_order import BatchOrder, deal
from utils.corpus.prepared import load_utterance
from utils.system.errors import InputError, one_line
from utils.system.signals import start_worker

if TYPE_CHECKING:
    from datasets import LibriSpeech


class Batch(NamedTuple):
    """Utterances trimmed to the longest of them."""

    inputs: torch.Tensor  # float32 (batch, longest, mel_dim), zero on padding
    lengths: torch.Tensor  # int64 (batch,)
    indices: list[int]  # their places in the dataset


class Share(NamedTuple):
    """What one process reads of a batch."""

    indices: list[int]  # the utterances of the whole batch
    parts: list[Batch]  # this process's share of them, in one batch or several; a part may be empty


class _Request(NamedTuple):
    """What a worker needs to know of a batch in order to read it."""

    files: list[Path]
    starts: list[int]
    lengths: list[int]
    mel_dim: int
    indices: list[int]


class _Assembled(Dataset):
    """Batches by request, so that workers read, trim and assemble them."""

    def __getitem__(self, request: _Request) -> Batch | InputError:
        files, starts, lengths, mel_dim, indices = request
        try:
            utterances = [read_frames(*of, mel_dim) for of in zip(files, starts, lengths, strict=True)]
        except InputError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback: `batches` raises it
        except OSError as error:
            return InputError(f"{error.filename or 'reading data'}: {error.strerror or error}")
        inputs = torch.zeros(len(indices), max(lengths, default=0), mel_dim)  # (batch, longest, mel_dim)
        for row, x, length in zip(inputs, utterances, lengths, strict=True):
            row[:length] = x
        batch = Batch(inputs, torch.tensor(lengths, dtype=torch.int64), indices)
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | InputError:
    """A worker's batch in shared memory. The queue would move it there in a thread, and drop it where that fails."""
    try:
        return batch._replace(inputs=batch.inputs.share_memory_(), lengths=batch.lengths.share_memory_())
    except (RuntimeError, OSError) as error:
        size = f"{batch.inputs.nbytes / 1e6:.0f} MB"
        advice = "give the container more of it (--shm-size, --ipc=host), or read with --load_data_workers 0"
        return InputError(f"no shared memory for a batch of {size}: {one_line(error, 200)}; {advice}")


def read_frames(file: Path, start: int, length: int, mel_dim: int) -> torch.Tensor:
    """Frames of a prepared utterance from a first one on, float32 (length, mel_dim), whose sizes are checked."""
    x = load_utterance(file, start + length)
    if x.size(1) != mel_dim:
        raise InputError(f"{file} has frames of {x.size(1)}, the other utterances of {mel_dim}")
    return x[start : start + length]


class BatchReader:
    """Reads batches of any datasets, by worker processes that are started once; use in a `with` statement.

    Enter it before the process has threads, which those of PyTorch's process group are: a process that is forked while
    a thread holds one of the interpreter's locks waits for that lock forever.

    Args:
        num_workers: processes that read and assemble; 0 reads in this one.

    Attributes:
        pin_memory: whether batches lie in page-locked memory, from which copies to a GPU need not be waited for.

    Raises:
        InputError: a worker process died.
    """

    def __init__(self, num_workers: int = 0) -> None:
        self.pin_memory = False
        self._requests: list[_Request] = []  # the batches to read next
        self._loader = DataLoader(
            _Assembled(),
            sampler=self._requests,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the loader seeds its workers: not from the generator that dropout uses
        )

    def __enter__(self) -> "BatchReader":
        iter(self._loader)  # starts the workers; nothing is requested of them yet
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self._loader.num_workers:  # now, not when the garbage collector comes by
            self._loader._iterator._shutdown_workers()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            # PyTorch raises this wherever the main process happens to be
            raise InputError(f"{_dead_worker(error)}; continue with the same command and --resume") from error

    def batches(self, dataset: "LibriSpeech", order: Iterable[list[int]]) -> Iterator[Batch]:
        """The batches of a pass over a dataset. The next pass ends this one.

        Args:
            dataset: the utterances.
            order: which of them make up each batch: a BatchOrder, or a list of lists of indices.

        Raises:
            InputError: a file is missing or damaged, or a worker process died.
        """
        files, starts, lengths, mel_dim = dataset.files, dataset.starts, dataset.lengths, dataset.mel_dim
        self._requests[:] = (
            _Request(*([values[i] for i in batch] for values in (files, starts, lengths)), mel_dim, batch)
            for batch in order
        )
        try:
            for batch in self._loader:
                if isinstance(batch, InputError):
                    raise batch
                yield batch._replace(inputs=batch.inputs.pin_memory()) if self.pin_memory else batch
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # the last three where the process died after it announced a batch and before it delivered it
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise _dead_worker(error) from error

    def shares(self, dataset: "LibriSpeech", order: BatchOrder, rank: int, size: int, parts: int) -> Iterator[Share]:
        """The share of each batch that process `rank` of `size` reads, in this many parts."""
        wholes = list(order)
        mine = [part for whole in wholes for part in deal(whole, dataset.lengths, size * parts)[rank::size]]
        with closing(self.batches(dataset, mine)) as batches:
            for whole in wholes:
                yield Share(whole, list(islice(batches, parts)))


def _dead_worker(error: Exception) -> InputError:
    message = one_line(error, 200)
    return InputError(f"a data loading process died ({message}); if memory ran out, lower --load_data_workers")
