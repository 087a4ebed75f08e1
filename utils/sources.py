"""Where utterances come from: archives, or a tree of audio files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.audio import AudioUtterance, find_audio
from utils.byte_reader import open_regular
from utils.kaldi_io import check_no_command, scan_archive
from utils.utterances import MatrixUtterance, Utterance

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
    unit = " files"

    @classmethod
    def find(cls, directory: Path, channel: int | None = None, resample: bool = False) -> "AudioSource":
        """Look for the files. Raises InputError where there are none, or two of one name."""
        return cls(find_audio(directory, channel, resample), directory)

    def utterances(self) -> Iterator[AudioUtterance]:
        """Every utterance, in order."""
        return iter(self.files)

    def total(self) -> int:
        """The number of files, for a progress bar."""
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        """What tells this tree from others, without reading it: names and sizes."""
        digest = hashlib.sha256()
        for file in self.files:
            name = Path(file.where).relative_to(self.directory)
            digest.update(f"{name}\t{file.num_bytes}\n".encode("utf-8", "surrogateescape"))
        first = self.files[0]
        tree = {"files": len(self.files), "sha256": digest.hexdigest()}
        return {"audio": tree, "channel": first.channel, "resample": first.resample}


def _describe_archive(path: Path) -> dict[str, Any]:
    """Name, size and a digest of both ends; of an .scp also what it points to, and its entries are checked."""
    check_no_command(str(path), "input")
    with open_regular(path) as file:
        digest = hashlib.sha256(file.read(FINGERPRINT_BYTES))
        size = path.stat().st_size
        file.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(file.read(FINGERPRINT_BYTES))
    description = {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}
    if path.suffix == ".scp":
        arks = {Path(entry.path) for entry in scan_archive(path) if isinstance(entry, MatrixUtterance)}
        description["points_to_bytes"] = sum(ark.stat().st_size for ark in arks if ark.is_file())
    return description


Source = ArchiveSource | AudioSource
