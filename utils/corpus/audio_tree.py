"""The audio files below a directory as a source of utterances."""

import errno
import hashlib
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd
from utils.corpus.sources import Source
from utils.corpus.utterance import Utterance
from utils.system.errors import InputError
from utils.system.files import check_utterance_id

AUDIO_SUFFIXES = (".flac", ".wav", ".wave", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".sph")
CONVERTIBLE_SUFFIXES = (".m4a", ".aac")
CONVERT = "ffmpeg -i in.m4a -ar 16000 out.wav"


@dataclass(frozen=True, kw_only=True)
class AudioUtterance(Utterance):
    """An audio file; reading it computes its log-Mel frames."""

    channel: int | None = None
    resample: bool = False
    mtime_ns: int = 0
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END]

    # The libraries that read audio are imported where audio is read.

    def long_frames(self) -> int | None:
        from utils.audio.waveforms import long_frames

        return long_frames(self.location)

    def _read(self) -> np.ndarray:
        from utils.audio import log_mel, waveforms

        waveform = waveforms.read_waveform(self.location, self.channel, self.resample)
        return log_mel.log_mel(waveform, front_end=self.front_end, seed=self.id)

    def _read_blocks(self) -> Iterator[np.ndarray]:
        from utils.audio import log_mel, waveforms

        online = log_mel.OnlineLogMel(self.front_end, self.id)
        for samples in waveforms.waveform_blocks(self.location, self.channel, self.resample):
            yield online.accept(samples)

    def _remark(self) -> str | None:
        from utils.audio.waveforms import describe_length, is_silent

        if remark := describe_length(self.location):
            return remark
        return "digital silence: every sample is 0" if is_silent(self.location, self.channel) else None


@dataclass(frozen=True)
class AudioSource(Source):
    """The audio files below a directory, sorted by utterance id."""

    files: list[AudioUtterance]
    directory: Path
    not_read: Counter[str] = field(default_factory=Counter)

    @classmethod
    def find(
        cls,
        directory: Path,
        channel: int | None = None,
        resample: bool = False,
        skip_errors: bool = False,
        front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END],
    ) -> "AudioSource":
        """Look for the files, also behind links; an utterance's id is its file's name without the suffix.

        With `skip_errors`, directories that cannot be read are skipped.

        Raises:
            InputError: there is none, two have the same name, a name is not an utterance id, or a directory is
                unreadable.
        """
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory")
        files, not_read = _walk(directory, skip_errors)
        found: dict[str, AudioUtterance] = {}
        problems = []
        for path, size, mtime_ns in sorted(files):
            try:
                name = check_utterance_id(path.stem, str(path))
            except InputError as error:
                problems.append(str(error))
                continue
            if name in found:
                problems.append(f"{found[name].location} and {path} are both utterance {name}: rename one")
                continue
            place = {"id": name, "location": str(path), "size": size, "folder": path.absolute().parent.name}
            found[name] = AudioUtterance(
                **place, channel=channel, resample=resample, mtime_ns=mtime_ns, front_end=front_end
            )
        if problems:
            others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise InputError(problems[0] + others, details=problems if others else ())
        if not found:
            others = f"; {_describe_not_read(not_read)}" if not_read else ""
            raise InputError(f"{directory} holds no audio files ({', '.join(AUDIO_SUFFIXES)}){others}")
        return cls([found[name] for name in sorted(found)], directory, not_read)

    @property
    def front_end(self) -> FrontEnd:
        """That of all its files."""
        return self.files[0].front_end

    def utterances(self) -> Iterator[AudioUtterance]:
        return iter(self.files)

    def total(self) -> int:
        return sum(file.size for file in self.files)

    def describe(self) -> dict[str, Any]:
        """Names, sizes and times, and how the audio is read."""
        digest = hashlib.sha256()
        for file in self.files:
            name = Path(file.location).relative_to(self.directory)
            digest.update(f"{name}\t{file.size}\t{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
        first = self.files[0]
        tree = {"files": len(self.files), "sha256": digest.hexdigest()}
        return {"audio": tree, "channel": first.channel, "resample": first.resample, **self.front_end.describe()}

    def warnings(self) -> list[str]:
        lines = []
        if any(file.location.lower().endswith(".mp3") for file in self.files):
            lines.append("an .mp3 may promise no length: whether one is truncated cannot always be known")
        return [*lines, _describe_not_read(self.not_read)] if self.not_read else lines


def _describe_not_read(not_read: Counter[str]) -> str:
    """The entries of a directory that are not read: how many of each kind."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in not_read.most_common())
    convert = f" (convert these: {CONVERT})" if any(kind in CONVERTIBLE_SUFFIXES for kind in not_read) else ""
    return f"{not_read.total()} files not read: {kinds}{convert}"


def _walk(top: Path, skip_errors: bool) -> tuple[list[tuple[Path, int, int]], Counter[str]]:
    """The path, size and time of each audio file below a directory, and how many entries of each kind are not read.

    Linked directories come last, so that a file also reachable through a link keeps its real path.
    """
    files: list[tuple[Path, int, int]] = []
    not_read: Counter[str] = Counter()
    folders, linked, seen = [top], deque[Path](), set()
    while folders or linked:
        folder = folders.pop() if folders else linked.popleft()
        try:
            status = folder.stat()
            entries = [] if (status.st_dev, status.st_ino) in seen else sorted(os.scandir(folder), key=os.fspath)
        except OSError as error:
            if not skip_errors:
                raise InputError(f"{folder} cannot be read: {error.strerror}; --on_error skip skips it") from error
            not_read["unreadable directory"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            not_read["link to a directory that is read already"] += 1
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = folder / entry.name
            kind, size, mtime_ns = _kind_size_time(path, entry)
            if kind == "file":
                files.append((path, size, mtime_ns))
            elif kind != "directory":
                not_read[kind] += 1
            elif not entry.is_symlink():
                folders.append(path)
            elif _is_above(path, folder) or _is_above(path, top):
                not_read["link to a directory above it"] += 1
            else:
                linked.append(path)
    return files, not_read


def _kind_size_time(path: Path, entry: os.DirEntry) -> tuple[str, int, int]:
    """'directory', 'file' where it is to be read, or the kind of what is not; its size and modification time."""
    if entry.name.startswith("."):  # macOS adds ._name files
        return "hidden", 0, 0
    suffix = path.suffix.lower()
    kind = "file" if suffix in AUDIO_SUFFIXES else suffix or "without suffix"
    try:
        status = path.stat()
    except OSError as error:  # reading what is there says what is wrong
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            kind = "broken link"
        return "directory" if entry.is_dir(follow_symlinks=False) else kind, 0, 0
    if stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif kind == "file" and not stat.S_ISREG(status.st_mode):
        kind = "device or pipe"
    return kind, status.st_size, status.st_mtime_ns


def _is_above(link: Path, folder: Path) -> bool:
    """Whether a link leads to a directory that holds the folder, or to the folder itself."""
    return folder.resolve().is_relative_to(link.resolve())
