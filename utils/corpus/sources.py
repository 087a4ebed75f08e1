"""Where utterances come from: archives, a tree of audio files, or a prepared directory."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.audio.waveforms import (
    AUDIO_SUFFIXES,
    CONVERT,
    CONVERTIBLE_SUFFIXES,
    AudioUtterance,
    describe_not_read,
    find_audio,
)
from utils.corpus.normalization import NORMALIZATION_FILE
from utils.corpus.output_directory import MADE_FROM_FILE
from utils.corpus.prepared import LENGTHS_FILE, TENSOR_SUFFIX, list_utterances, load_utterance, read_bytes
from utils.kaldi.archives import check_no_command, scan_archive
from utils.kaldi.byte_reader import exists, open_regular, reading
from utils.kaldi.matrices import BadUtterance, MatrixUtterance, Utterance
from utils.system.errors import InputError
from utils.system.files import atomic_write

REMARKS_FILE = "shorter.txt"  # a line for each audio file that is shorter than its header promises
FINGERPRINT_BYTES = 1 << 20  # at each end of a file


class ArchiveSource(NamedTuple):
    """The utterances of Kaldi archives, one archive after another."""

    paths: list[Path]
    unit = "B"

    def utterances(self) -> Iterator[Utterance]:
        """Every utterance, in order."""
        for path in self.paths:
            yield from scan_archive(path)

    def total(self) -> int:
        """The archives' size in bytes, for a progress bar."""
        return sum(path.stat().st_size for path in self.paths)

    def describe(self) -> dict[str, Any]:
        """What tells these archives from others, without reading them whole."""
        return {"archives": [_describe_archive(path) for path in self.paths]}


class AudioSource(NamedTuple):
    """The audio files below a directory, sorted by utterance id."""

    files: list[AudioUtterance]
    directory: Path
    not_read: Counter[str] | None = None
    unit = " files"

    @classmethod
    def find(
        cls, directory: Path, channel: int | None = None, resample: bool = False, skip_errors: bool = False
    ) -> "AudioSource":
        """Look for the files. Raises InputError where there are none, or two of one name."""
        files, not_read = find_audio(directory, channel, resample, skip_errors)
        return cls(files, directory, not_read)

    def utterances(self) -> Iterator[AudioUtterance]:
        """Every utterance, in order."""
        return iter(self.files)

    def total(self) -> int:
        """The number of files, for a progress bar."""
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        """What tells this tree from others, without reading it: names, sizes and times."""
        digest = hashlib.sha256()
        for file in self.files:
            name = Path(file.where).relative_to(self.directory)
            digest.update(f"{name}\t{file.num_bytes}\t{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
        first = self.files[0]
        tree = {"files": len(self.files), "sha256": digest.hexdigest()}
        return {"audio": tree, "channel": first.channel, "resample": first.resample}


class PreparedUtterance(NamedTuple):
    """An utterance of a prepared directory."""

    utterance: str
    where: str
    num_bytes: int
    length: int

    def load(self) -> np.ndarray:
        """(frames, mel_dim) float32, the true frames. Raises InputError where the file is damaged or too short."""
        with reading(self.where):
            return load_utterance(self.where, self.length)[: self.length].numpy()

    def remark(self) -> None:
        """Nothing: a tensor is whole, or bad."""


class PreparedSource(NamedTuple):
    """The utterances of a prepared directory, in the order of its lengths.pkl."""

    directory: Path
    lengths: dict[str, int]
    unit = " utterances"

    @classmethod
    def find(cls, directory: Path) -> "PreparedSource":
        """Read lengths.pkl. Raises InputError where it is damaged, or names a file that is missing."""
        lengths = list_utterances(directory)
        if not lengths:
            raise InputError(f"{directory} holds no utterance")
        return cls(directory, lengths)

    def utterances(self) -> Iterator[PreparedUtterance]:
        """Every utterance, in order."""
        for utterance, length in self.lengths.items():
            yield PreparedUtterance(utterance, str(self.directory / f"{utterance}{TENSOR_SUFFIX}"), 1, length)

    def total(self) -> int:
        """The number of utterances, for a progress bar."""
        return len(self.lengths)

    def describe(self) -> dict[str, Any]:
        """What tells this directory from others: its lengths, what it says it was made from, and its first tensor."""
        told = [self.directory / name for name in (LENGTHS_FILE, MADE_FROM_FILE, NORMALIZATION_FILE)]
        digest = hashlib.sha256()
        for path in (*told, Path(next(self.utterances()).where)):
            if path.is_file():
                digest.update(read_bytes(path))
        return {"prepared": {"utterances": len(self.lengths), "sha256": digest.hexdigest()}}


def find_source(
    paths: list[Path], channel: int | None = None, resample: bool = False, skip_errors: bool = False
) -> "Source":
    """The source that paths name: a prepared directory (it has a lengths.pkl), a directory of audio, or archives.

    Raises:
        InputError: there is nothing of the kind.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES:
            raise InputError(f"{path} is an audio file: give the directory that holds it")
        if path.is_file() and path.suffix.lower() in CONVERTIBLE_SUFFIXES:
            raise InputError(f"{path} cannot be read: convert it ({CONVERT}), and give the directory that holds it")
    if not any(path.is_dir() for path in paths):
        return ArchiveSource(paths)
    if len(paths) > 1:
        raise InputError(f"{', '.join(map(str, paths))}: give one directory, or archives only")
    if (paths[0] / LENGTHS_FILE).exists():
        return PreparedSource.find(paths[0])
    if (paths[0] / MADE_FROM_FILE).exists():
        raise InputError(f"{paths[0]} has no {LENGTHS_FILE}: prepare_data.py was not done with it")
    return AudioSource.find(paths[0], channel, resample, skip_errors)


def _describe_archive(path: Path) -> dict[str, Any]:
    """Name, size and a digest of both ends; of an .scp also what it points to, and its entries are checked."""
    check_no_command(str(path), "input")
    with reading(path), open_regular(path) as file:
        digest = hashlib.sha256(file.read(FINGERPRINT_BYTES))
        size = path.stat().st_size
        file.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(file.read(FINGERPRINT_BYTES))
    description = {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}
    if path.suffix == ".scp":
        arks = {Path(entry.path) for entry in scan_archive(path) if isinstance(entry, MatrixUtterance)}
        description["points_to_bytes"] = sum(ark.stat().st_size for ark in arks if exists(ark) and ark.is_file())
    return description


Source = ArchiveSource | AudioSource | PreparedSource


def save_remarks(path: Path, done: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Write what was remarked on utterances, a line each, or remove the file where nothing was."""
    lines = [f"{utterance}\t{remark}\n" for utterance in order if (remark := done[utterance].get("remark"))]
    if lines:
        with atomic_write(path) as file:
            file.write("".join(lines).encode("utf-8", "surrogateescape"))
    else:
        path.unlink(missing_ok=True)


def closing_lines(source: Source, save_dir: Path) -> list[str]:
    """What people should know of the input when a job is done: what was not read, or could not be checked."""
    lines, remarks = [], save_dir / REMARKS_FILE
    if remarks.exists():
        count = len(remarks.read_bytes().splitlines())
        lines.append(f"{count} files shorter than their headers, or of no known length: "
                     f"{remarks} lists them")  # fmt: skip
    if isinstance(source, AudioSource):
        if any(file.where.lower().endswith(".mp3") for file in source.files):
            lines.append("an .mp3 may promise no length: whether one is cut off cannot always be told")
        if source.not_read:
            lines.append(describe_not_read(source.not_read))
    return lines


def unique_utterances(source: Source) -> Iterator[Any]:
    """The source's utterances; a second one of an id becomes a BadUtterance."""
    seen: dict[str, str] = {}
    for found in source.utterances():
        if isinstance(found, BadUtterance):
            yield found
        elif found.utterance in seen:
            yield BadUtterance.instead_of(found, f"stands twice: first at {seen[found.utterance]}")
        else:
            seen[found.utterance] = found.where
            yield found
