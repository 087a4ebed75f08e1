"""Features on the disk: a .pt or .npy file per utterance, or one Kaldi archive, of utterances of any length.

The features of an utterance are gathered in a Spool while they are computed, and then written whole to their place, in
such a way that a job that was killed continues.
"""

import contextlib
import os
import pickle
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.corpus.normalization import NORMALIZATION_FILE
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.prepared import TENSOR_SUFFIX
from utils.kaldi.write_archives import append_matrix, check_scp_can_name, write_scp
from utils.system.errors import InputError
from utils.system.files import atomic_write, naming_file

ARK, SCP, PARTIAL_ARK = "feats.ark", "feats.scp", "feats.ark.partial"
FORMATS = ("pt", "npy", "ark")
FACTS = {"frames": int}  # recorded of each utterance
ARCHIVE = ARK, SCP
ARK_FACTS = {"offset": int, "end": int}
IN_MEMORY_BYTES = 4 << 20  # of an utterance's features; longer ones wait on the disk
BLOCK_FRAMES = 4096
PT_VERSION = b"3\n"  # of PyTorch's zip format
STORAGES = {np.float32: torch.FloatStorage, np.float16: torch.HalfStorage}


class Spool:
    """An utterance's features, layer by layer, in memory or, where they are long, in unnamed temporary files.

    Args:
        directory: where the temporary files go.
        num_layers: how many layers there are.
        size: of a frame's features.
        dtype: np.float32 or np.float16.
        limit: the largest number, on either side of zero, that the format can hold; by default that of `dtype`.

    Attributes:
        frames: how many are there.
        span: the lowest and the highest number.
    """

    def __init__(
        self, directory: Path, num_layers: int, size: int, dtype: type[np.floating], limit: float | None = None
    ) -> None:
        self.num_layers, self.size, self.dtype = num_layers, size, dtype
        self.limit = float(np.finfo(dtype).max) if limit is None else limit
        self._directory = directory
        self.frames = 0
        self.span = np.inf, -np.inf
        with contextlib.ExitStack() as stack:
            layers = range(num_layers)
            self._files = [
                stack.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=directory)) for _ in layers
            ]
            self._stack = stack.pop_all()

    def append(self, features: np.ndarray) -> None:
        """Add the features of the next frames, (num_layers, frames, size).

        Raises:
            InputError: one of them is NaN, infinite, or more than the format can hold; names the frame.
        """
        lowest, highest = float(features.min()), float(features.max())
        if not -self.limit <= lowest <= highest <= self.limit:  # no comparison with NaN is true
            bad = ~(np.abs(features) <= self.limit).all(axis=(0, 2))  # (frames,)
            frame = self.frames + int(bad.argmax()) + 1
            raise InputError(
                f"the features of frame {frame} are NaN or beyond {self.limit:g}, the most that this format holds"
            )
        self.span = min(self.span[0], lowest), max(self.span[1], highest)
        with naming_file(self._directory):
            for file, layer in zip(self._files, features, strict=True):
                file.write(np.ascontiguousarray(layer, self.dtype))
        self.frames += features.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        """All features, (some frames, size) a block, one layer after another."""
        for file in self._files:
            file.seek(0)
            while block := file.read(BLOCK_FRAMES * self.size * self.dtype().itemsize):
                yield np.frombuffer(block, self.dtype).reshape(-1, self.size)

    def close(self) -> None:
        """Free the memory, and remove the files."""
        self._stack.close()


def write_pt(file: BinaryIO, spool: Spool, shape: tuple[int, ...]) -> None:
    """Write what torch.save would write of a tensor of this shape, which is never whole in memory."""
    tensor, storage = torch.empty(shape, device="meta"), object()

    class TensorPickler(pickle.Pickler):
        """Pickles the tensor, and names its storage, as PyTorch does."""

        def persistent_id(self, value: Any) -> tuple | None:
            return ("storage", STORAGES[spool.dtype], "0", "cpu", tensor.numel()) if value is storage else None

        def reducer_override(self, value: Any) -> Any:
            rebuilt = storage, 0, shape, tensor.stride(), False, OrderedDict()
            return (torch._utils._rebuild_tensor_v2, rebuilt) if value is tensor else NotImplemented

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w") as member:
            TensorPickler(member, protocol=2).dump(tensor)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), sys.byteorder)
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as member:
            for block in spool.blocks():
                member.write(block)
        archive.writestr(zipfile.ZipInfo("archive/version"), PT_VERSION)


def write_npy(file: BinaryIO, spool: Spool, shape: tuple[int, ...]) -> None:
    """Write what np.save would write of an array of this shape."""
    header = {"descr": np.dtype(spool.dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in spool.blocks():
        file.write(block)


class FeatureWriter(ABC):
    """Writes features into an output directory, open and not complete."""

    def __init__(self, out: OutputDirectory) -> None:
        self._out = out

    @abstractmethod
    def spool(self, num_layers: int, size: int) -> Spool:
        """A place for an utterance's features while they are computed."""

    @abstractmethod
    def has(self, utterance: str) -> bool:
        """Whether an utterance is done."""

    @abstractmethod
    def save(self, utterance: str, spool: Spool) -> dict[str, Any]:
        """Write an utterance; returns the facts to record of it."""

    def arrange(self, features: np.ndarray) -> np.ndarray:
        """Features (layers, frames, size) in the form that the spool takes."""
        return features

    def finish(self, utterances: list[str]) -> None:  # noqa: B027
        """Complete the files when all utterances are done, in this order."""

    def close(self) -> None:  # noqa: B027
        """Close what is open."""


class FilesByUtterance(FeatureWriter):
    """`<utterance id>.pt` or `.npy`: (frames, size), or with `all_layers` (layers, frames, size); `half` is float16."""

    def __init__(self, out: OutputDirectory, suffix: str, all_layers: bool, half: bool) -> None:
        super().__init__(out)
        self._all_layers = all_layers
        self._write = write_pt if suffix == TENSOR_SUFFIX else write_npy
        self._dtype = np.float16 if half else np.float32

    def spool(self, num_layers: int, size: int) -> Spool:
        return Spool(self._out.path, num_layers, size, self._dtype)

    def has(self, utterance: str) -> bool:
        return self._out.has(utterance)

    def save(self, utterance: str, spool: Spool) -> dict[str, Any]:
        shape = (spool.num_layers, spool.frames, spool.size)[0 if self._all_layers else 1 :]
        self._out.claim(utterance)
        with atomic_write(self._out.tensor_path(utterance)) as file:
            self._write(file, spool, shape)
        return {}


class KaldiArchive(FeatureWriter):
    """feats.ark, in the order of the work, and feats.scp, in that of the source; with several layers side by side.

    Kaldi has no float16: `half` stores its 16 bits per number (CM2). An utterance is appended, flushed to the disk, and
    then recorded with its offset; what a killed job wrote behind the last recorded one is removed. The archive has
    another name until it is complete. Raises InputError where an .scp cannot name the directory.
    """

    def __init__(self, out: OutputDirectory, half: bool) -> None:
        super().__init__(out)
        check_scp_can_name(out.path / ARK)
        self._half = half
        partial, whole = out.path / PARTIAL_ARK, out.path / ARK
        if whole.exists():
            whole.replace(partial)  # a job was killed before the directory was complete
        self._file = partial.open("r+b" if partial.exists() else "w+b")
        self._drop_truncated()

    def _drop_truncated(self) -> None:
        size, end = self._file.seek(0, 2), 0
        for utterance, facts in list(self._out.done.items()):
            if facts.get("end", 0) > size:
                self._out.claim(utterance)  # a line that the next run reads, too
            else:
                end = max(end, facts.get("end", 0))
        self._file.truncate(end)
        self._file.seek(end)

    def spool(self, num_layers: int, size: int) -> Spool:
        limit = float(np.finfo(np.float32).max) / (2 if self._half else 1)  # CM2 stores the span as a float32
        return Spool(self._out.path, 1, num_layers * size, np.float32, limit)

    def arrange(self, features: np.ndarray) -> np.ndarray:
        """(1, frames, layers * size)."""
        return features.transpose(1, 0, 2).reshape(1, features.shape[1], -1)

    def has(self, utterance: str) -> bool:
        return utterance in self._out.done

    def save(self, utterance: str, spool: Spool) -> dict[str, Any]:
        shape, span = (spool.frames, spool.size), spool.span if self._half else None
        with naming_file(self._out.path / PARTIAL_ARK):
            offset = append_matrix(self._file, utterance, shape, spool.blocks(), span)
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"offset": offset, "end": self._file.tell()}

    def finish(self, utterances: list[str]) -> None:
        (self._out.path / PARTIAL_ARK).replace(self._out.path / ARK)
        write_scp(self._out.path / ARK, [(name, self._out.done[name]["offset"]) for name in utterances])

    def close(self) -> None:
        with naming_file(self._out.path / PARTIAL_ARK):  # writes again what a full disk did not take
            self._file.close()


def check_archive(directory: Path) -> None:
    """Raise InputError where a complete directory lacks its archive."""
    for name in ARCHIVE:
        if not (directory / name).is_file():
            raise InputError(f"{directory}: {name} is missing; --overwrite to make all of it anew")


def extra_files(made_from: dict[str, Any]) -> tuple[str, ...]:
    """The files that extraction writes besides those by utterance, given what features were made from."""
    archive = (*ARCHIVE, PARTIAL_ARK) if made_from.get("format") == "ark" else ()
    return archive if made_from.get("data_norm") == "none" else (*archive, NORMALIZATION_FILE)


def open_features(out: OutputDirectory, form: str, all_layers: bool, half: bool) -> FeatureWriter:
    """The writer of a format. Raises InputError where an .scp cannot name the directory."""
    return KaldiArchive(out, half) if form == "ark" else FilesByUtterance(out, f".{form}", all_layers, half)
