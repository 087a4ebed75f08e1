"""Where utterances come from: Kaldi archives and prepared directories; audio is in audio_source.py."""

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio.front_ends import FrontEnd
from utils.corpus.cmvn import is_statistics
from utils.corpus.frame_spec import ARCHIVES_OF, UNKNOWN, FrameSpec
from utils.corpus.normalization import NORMALIZATION_FILE
from utils.corpus.output_directory import MADE_FROM_FILE, POINTS_TO_SHA256, REMARKS_FILE
from utils.corpus.prepared import LENGTHS_FILE, TENSOR_SUFFIX, list_utterances, load_utterance
from utils.corpus.speakers import FROM_IDS, Speakers
from utils.corpus.utterance import BadUtterance, Utterance
from utils.kaldi.matrices import BinaryMatrix, TextMatrix, Unreadable
from utils.kaldi.read_archives import archive_path, check_no_command, scan_archive
from utils.system.errors import InputError, one_line
from utils.system.reading import exists, open_regular, read_bytes, reading

FINGERPRINT_BYTES, FINGERPRINT_BYTES_OF_MANY = 1 << 20, 1 << 16  # at each end of a file, of one of many


class Source(ABC):
    """Utterances in a fixed order.

    Attributes:
        unit: what an utterance's `size` counts, for a progress bar.
        speakers: who speaks, as far as the source says.
    """

    unit = "B"
    speakers: Speakers

    def __str__(self) -> str:
        """Where it is, for people."""
        return "the data"

    @property
    def frame_spec(self) -> FrameSpec:
        """How its frames were made, as far as known."""
        return UNKNOWN

    @abstractmethod
    def utterances(self) -> Iterator[Utterance]:
        """Every utterance, in order; one that cannot be read is a BadUtterance."""

    @abstractmethod
    def total(self) -> int:
        """The sum of the utterances' sizes, for a progress bar."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What identifies the source and the options that it is read with (JSON types), without reading it whole."""

    def warnings(self) -> list[str]:
        """Lines that people should read when a job is done: what was not read, or could not be checked."""
        return []

    def unique(self) -> Iterator[Utterance]:
        """Every utterance; the second one of a duplicate id is a BadUtterance."""
        seen: dict[str, str] = {}
        for utterance in self.utterances():
            if isinstance(utterance, BadUtterance):
                yield utterance
            elif utterance.id in seen:
                yield utterance.rejected(f"duplicate utterance id: first at {seen[utterance.id]}")
            else:
                seen[utterance.id] = utterance.location
                yield utterance


@dataclass(frozen=True, kw_only=True)
class ArchiveUtterance(Utterance):
    """A matrix in a Kaldi archive."""

    matrix: TextMatrix | BinaryMatrix

    def _read(self) -> np.ndarray:
        frames = self.matrix.read()
        if is_statistics(frames):
            raise InputError("Kaldi's statistics of frames, not features: --norm_from scales frames by them")
        return frames


@dataclass(frozen=True)
class ArchiveSource(Source):
    """The utterances of Kaldi archives, one archive after another.

    Attributes:
        front_end: what made their frames, where the user knows it.
        chosen: some of their utterances, instead of all.
    """

    paths: list[Path]
    speakers: Speakers = FROM_IDS
    front_end: FrontEnd | None = None
    chosen: list[Utterance] | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths[:1])) + (", ..." if len(self.paths) > 1 else "")

    @property
    def frame_spec(self) -> FrameSpec:
        if self.front_end:
            return FrameSpec.of_front_end(self.front_end)
        return FrameSpec.of_archives([path.name for path in self.paths])

    def utterances(self) -> Iterator[Utterance]:
        yield from self._scan() if self.chosen is None else self.chosen

    def _scan(self) -> Iterator[Utterance]:
        for path in self.paths:
            for entry in scan_archive(path):
                place = {"id": entry.id, "location": entry.location, "size": entry.num_bytes}
                if isinstance(entry.matrix, Unreadable):
                    yield BadUtterance(**place, reason=entry.matrix.reason)
                else:
                    yield ArchiveUtterance(**place, matrix=entry.matrix)

    def total(self) -> int:
        if self.chosen is not None:
            return sum(utterance.size for utterance in self.chosen)
        return sum(archive_path(path)[0].stat().st_size for path in self.paths)

    def describe(self) -> dict[str, Any]:
        description: dict[str, Any] = {"archives": [_describe_archive(path) for path in self.paths]}
        if self.chosen is not None:
            ids = "".join(f"{utterance.id}\n" for utterance in self.chosen)
            description["utterances"] = {"count": len(self.chosen), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
        return description | ({ARCHIVES_OF: self.front_end.name} if self.front_end else {})


@dataclass(frozen=True, kw_only=True)
class PreparedUtterance(Utterance):
    """An utterance of a prepared directory."""

    length: int

    def _read(self) -> np.ndarray:
        return load_utterance(self.location, self.length)[: self.length].numpy()


@dataclass(frozen=True)
class PreparedSource(Source):
    """The utterances of a prepared directory, in the order of its lengths.pkl."""

    directory: Path
    lengths: dict[str, int]
    speakers: Speakers = FROM_IDS
    unit = " utterances"

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def frame_spec(self) -> FrameSpec:
        return FrameSpec.of_directory(self.directory)

    @classmethod
    def find(cls, directory: Path) -> "PreparedSource":
        """Read lengths.pkl. Raises InputError where it is empty or damaged, or names a file that is missing."""
        if lengths := list_utterances(directory):
            return cls(directory, lengths)
        raise InputError(f"{directory} holds no utterance")

    def utterances(self) -> Iterator[PreparedUtterance]:
        for name, length in self.lengths.items():
            yield PreparedUtterance(id=name, location=str(self.directory / f"{name}{TENSOR_SUFFIX}"), length=length)

    def total(self) -> int:
        return len(self.lengths)

    def describe(self) -> dict[str, Any]:
        """Its lengths, what it says it was made from, and its first tensor."""
        facts = [self.directory / name for name in (LENGTHS_FILE, MADE_FROM_FILE, NORMALIZATION_FILE)]
        digest = hashlib.sha256()
        for path in (*facts, Path(next(self.utterances()).location)):
            if path.is_file():
                digest.update(read_bytes(path))
        return {"prepared": {"utterances": len(self.lengths), "sha256": digest.hexdigest()}}


def _describe_archive(name: Path) -> dict[str, Any]:
    """Name, size and a digest of both ends, of an .scp also of what it points to; its entries are checked."""
    path, form = archive_path(name)
    check_no_command(str(path), "input")
    digest = hashlib.sha256()
    size = _add_ends(path, FINGERPRINT_BYTES, digest)
    description = {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}
    if form == "scp":
        arks = {Path(entry.matrix.path) for entry in scan_archive(name) if isinstance(entry.matrix, BinaryMatrix)}
        digest, total = hashlib.sha256(), 0
        for ark in sorted(ark for ark in arks if exists(ark) and ark.is_file()):
            with contextlib.suppress(InputError):  # reading its utterances says what is wrong
                total += _add_ends(ark, FINGERPRINT_BYTES_OF_MANY, digest)
        description |= {"points_to_bytes": total, POINTS_TO_SHA256: digest.hexdigest()}
    return description


def _add_ends(path: Path, num_bytes: int, digest: "hashlib._Hash") -> int:
    """Add so many bytes of both ends of a file to a digest; returns its size."""
    with reading(path), open_regular(path) as file:
        size = path.stat().st_size
        digest.update(file.read(num_bytes))
        file.seek(max(0, size - num_bytes))
        digest.update(file.read(num_bytes))
    return size


def closing_lines(source: Source, save_dir: Path) -> list[str]:
    """What people should know of the input when a job is done."""
    lines, remarks = source.warnings(), save_dir / REMARKS_FILE
    if remarks.exists():
        count = len(remarks.read_bytes().splitlines())
        files = f"{count} files shorter than their headers, of unknown length, silent or of zero variance"
        lines.insert(0, f"{files}: {remarks} lists them")
    return [one_line(line, 1000) for line in lines]  # names of files may not be text
