"""Audio as a source of utterances: files, or parts of them, whatever named them: a tree, a list or a command line."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.audio.frames import WHOLE, Span
from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.output_directory import AUDIO_KEY
from utils.corpus.sources import Source
from utils.corpus.speakers import FROM_IDS, Speakers
from utils.corpus.utterance import Utterance, UtteranceError
from utils.system.errors import InputError, one_line
from utils.system.files import check_utterance_id

CONVERTIBLE_SUFFIXES = (".m4a", ".aac")
CONVERT = "ffmpeg -i in.m4a -ar 16000 out.wav"
MAX_SECONDS = 1 << 24  # of a recording: half a year
BYTES_PER_SECOND = 32000  # of a part's share of the progress
BY_NAME, BY_PATH = UTTERANCE_IDS = ("name", "path")


class AudioOptions(NamedTuple):
    """How audio is read.

    Attributes:
        channel: of files with several, from 0.
        resample: convert other sample rates.
        skip_errors: skip directories that cannot be read.
        front_end: how audio becomes frames.
        utterance_id: BY_NAME or BY_PATH; None takes names where they differ, else paths.
        archives_of: the front end of archives that are found instead, where it is known.
    """

    channel: int | None = None
    resample: bool = False
    skip_errors: bool = False
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END]
    utterance_id: str | None = None
    archives_of: FrontEnd | None = None


DEFAULT_OPTIONS = AudioOptions()


class Entry(NamedTuple):
    """An utterance as a directory tree, a list or a command line gives it.

    Attributes:
        path: the audio file.
        place: what names it, for errors: the file itself, or a line of a list.
        name: the file's path in what was given, which the id is made from; or None where `id` is given.
        stamp: what changes when the file does.
        size: its share of the progress, in bytes.
        id: the utterance id, where `name` is None.
        span: the part of the file.
        channel: that of the list; None where it gives none.
        is_piped: the file is a copy of what came by a pipe, which `place` names.
    """

    path: Path
    place: str
    name: Path | None
    stamp: str
    size: int
    id: str = ""
    span: Span = WHOLE
    channel: int | None = None
    is_piped: bool = False

    @classmethod
    def of_file(cls, path: Path, place: str, name: Path | None = None, utterance: str = "") -> "Entry":
        """An entry of a whole file; if it is missing, reading it says so."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            return cls(path, place, name, "", 0, utterance)
        return cls(path, place, name, f"{status.st_size}\t{status.st_mtime_ns}", status.st_size, utterance)

    def part(self, span: Span) -> "Entry":
        """The entry of a part of its file."""
        size = self.size if span.end is None else round((span.end - span.start) * BYTES_PER_SECOND)
        return self._replace(span=span, size=size)


def parse_span(start: str, end: str) -> Span | None:
    """The part between two times in seconds, an `end` of -1 being the recording's; None where they are none."""
    try:
        span = Span(float(start), None if float(end) == -1 else float(end))
    except ValueError:
        return None
    return span if 0 <= span.start < (MAX_SECONDS if span.end is None else span.end) <= MAX_SECONDS else None


@dataclass(frozen=True, kw_only=True)
class AudioUtterance(Utterance):
    """An audio file or a part of one; reading it computes its log-Mel frames.

    Attributes:
        path: the file to read; `location` is what people know it by.
        stamp: identifies the utterance and its samples, without reading them.
    """

    path: str

    channel: int | None = None
    resample: bool = False
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END]
    span: Span = WHOLE
    stamp: str = ""

    def error(self, reason: object, location: str = "") -> UtteranceError:
        return super().error(reason, self.location if location == self.path else location)

    # The libraries that read audio are imported where audio is read.

    def long_frames(self) -> int | None:
        from utils.audio.waveforms import long_frames

        return long_frames(self.path, self.span)

    def _read(self) -> np.ndarray:
        from utils.audio import log_mel, waveforms

        waveform = waveforms.read_waveform(self.path, self.channel, self.resample, self.span)
        return log_mel.log_mel(waveform, front_end=self.front_end, seed=self.id)

    def _read_blocks(self) -> Iterator[np.ndarray]:
        from utils.audio import log_mel, waveforms

        online = log_mel.OnlineLogMel(self.front_end, self.id)
        for samples in waveforms.waveform_blocks(self.path, self.channel, self.resample, span=self.span):
            yield online.accept(samples)

    def _remark(self) -> str | None:
        from utils.audio.waveforms import describe_length, is_silent

        if remark := describe_length(self.path, self.span):
            return remark
        return "digital silence: every sample is 0" if is_silent(self.path, self.channel, self.span) else None


@dataclass(frozen=True)
class AudioSource(Source):
    """Audio files, or parts of them, sorted by utterance id.

    Attributes:
        options: how they are read.
        not_read: what was found but not read, by kind.
        notes: what people should know of how they were found.
    """

    files: list[AudioUtterance]
    options: AudioOptions
    speakers: Speakers = FROM_IDS
    not_read: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entries: list[Entry],
        options: AudioOptions,
        speakers: Speakers | None = None,
        not_read: Counter[str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> "AudioSource":
        """The utterances of some entries; without `speakers`, names and directories tell who speaks.

        Raises:
            InputError: a name cannot be an utterance id, or two utterances have the same; lists all problems.
        """
        ids, note = _utterance_ids(entries, options.utterance_id)
        _check_ids(entries, ids)
        named = sorted(zip(ids, entries, strict=True), key=lambda pair: pair[0])
        names = [(utterance, entry.name.stem if entry.name else utterance, entry.path) for utterance, entry in named]
        return cls(
            [_make_utterance(utterance, entry, options) for utterance, entry in named],
            options,
            speakers or replace(Speakers.by_names(names), is_listed=not all(entry.name for entry in entries)),
            not_read or Counter(),
            (note, *notes) if note else notes,
        )

    def __str__(self) -> str:
        return self.files[0].location + (", ..." if len(self.files) > 1 else "")

    @property
    def front_end(self) -> FrontEnd:
        """That of all its files."""
        return self.options.front_end

    def made_by(self, front_end: FrontEnd) -> "AudioSource":
        """The same audio, its frames made by another front end."""
        files = [replace(file, front_end=front_end) for file in self.files]
        return replace(self, files=files, options=self.options._replace(front_end=front_end))

    @property
    def frame_spec(self) -> FrameSpec:
        return replace(FrameSpec.of_front_end(self.front_end), norm="none")

    def utterances(self) -> Iterator[AudioUtterance]:
        return iter(self.files)

    def total(self) -> int:
        return sum(file.size for file in self.files)

    def describe(self) -> dict[str, Any]:
        """Names, sizes and times, and how the audio is read."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.stamp}\n".encode("utf-8", "surrogateescape"))
        audio = {"files": len(self.files), "sha256": digest.hexdigest()}
        channel, resample = self.options.channel, self.options.resample
        return {AUDIO_KEY: audio, "channel": channel, "resample": resample, **self.front_end.describe()}

    def warnings(self) -> list[str]:
        return [*self.notes, describe_not_read(self.not_read)] if self.not_read else list(self.notes)


def describe_not_read(not_read: Counter[str]) -> str:
    """What was found but not read: how many of each kind."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in not_read.most_common())
    convert = f" (convert these: {CONVERT})" if any(kind in CONVERTIBLE_SUFFIXES for kind in not_read) else ""
    return f"{not_read.total()} files not read: {kinds}{convert}"


def _make_utterance(utterance: str, entry: Entry, options: AudioOptions) -> AudioUtterance:
    """The utterance of an entry, read as the options say."""
    facts = [str(entry.name or utterance), entry.stamp]
    if entry.name and utterance != entry.name.stem:
        facts.append(utterance)
    if entry.span != WHOLE or entry.channel is not None:
        facts.append(f"{entry.span.start} {entry.span.end} {entry.channel}")
    return AudioUtterance(
        id=utterance,
        location=entry.place if entry.is_piped else str(entry.path),
        path=str(entry.path),
        size=entry.size,
        channel=options.channel if entry.channel is None else entry.channel,
        resample=options.resample,
        front_end=options.front_end,
        span=entry.span,
        stamp="\t".join(facts),
    )


def _utterance_ids(entries: list[Entry], rule: str | None) -> tuple[list[str], str]:
    """The id of each entry, and a note where it could not be its name: then all are paths, slashes made dashes."""
    note = ""
    if rule is None:
        first: dict[str, Entry] = {}
        for entry in entries:
            if entry.name and (other := first.setdefault(entry.name.stem, entry)) is not entry:
                rule, same = BY_PATH, f"{other.place} and {entry.place} have the same name"
                note = f"{same}: utterance ids are paths, like {_id_of(entry, rule)} (--utterance_id)"
                break
    return [_id_of(entry, rule) for entry in entries], note


def _id_of(entry: Entry, rule: str | None) -> str:
    if entry.name is None:
        return entry.id
    return "-".join(entry.name.with_suffix("").parts) if rule == BY_PATH else entry.name.stem


def _check_ids(entries: list[Entry], ids: list[str]) -> None:
    """Raise InputError where an id is invalid or used twice, or a format is unknown; lists all problems."""
    problems: list[str] = []
    first: dict[str, Entry] = {}
    for utterance, entry in zip(ids, entries, strict=True):
        if entry.path.suffix.lower() in CONVERTIBLE_SUFFIXES:
            problems.append(f"{entry.place}: {entry.path.name} cannot be read: convert it ({CONVERT})")
        try:
            check_utterance_id(utterance, entry.place)
        except InputError as error:
            problems.append(str(error))
        if (other := first.setdefault(utterance, entry)) is not entry:
            how = "rename one"
            if _id_of(other, BY_PATH) != _id_of(entry, BY_PATH):
                how = "--utterance_id path names them apart"
            elif entry.name and other.path.suffix != entry.path.suffix:
                how = "rename one, or give files of one format only"
            problems.append(f"{other.place} and {entry.place} are both utterance {one_line(utterance, 80)}; {how}")
    raise_problems(problems)


def raise_problems(problems: list[str]) -> None:
    """Raise InputError for problems that were found together, if any."""
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(problems[0] + others, details=problems if others else ())
