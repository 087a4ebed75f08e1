"""Who speaks in an utterance: by its id, its folder, or a Kaldi map."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.corpus.utterance import Utterance
from utils.kaldi.byte_reader import ByteReader
from utils.system.errors import InputError, one_line

MAX_MAP_LINE_BYTES = 16 << 20  # a line of spk2utt holds every utterance of a speaker
LIBRISPEECH_ID = re.compile(r"(?P<speaker>[A-Za-z0-9_]+)-[A-Za-z0-9_]+-[A-Za-z0-9_]+")
EVERYBODY = "all speakers"  # whose statistics the global mode uses
BY_ID, BY_FOLDER, BY_MAP = "the utterance id's first field", "the parent directory", "a map of speakers"


@dataclass(frozen=True)
class Speakers:
    """Who speaks in an utterance.

    Attributes:
        rule: BY_ID, BY_FOLDER or BY_MAP.
        of_utterance: for BY_MAP, the speaker of each utterance.
        source: for BY_MAP, the file, for errors.
    """

    rule: str = BY_ID
    of_utterance: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def read(cls, path: str | Path, speaker_first: bool) -> "Speakers":
        """Read Kaldi's utt2spk (`utterance speaker` per line) or, with `speaker_first`, spk2utt.

        Raises:
            InputError: a line of another form, or an utterance of two speakers; names the line.
        """
        speakers: dict[str, str] = {}
        for location, fields in _read_lines(path):
            if len(fields) < 2 or (len(fields) > 2 and not speaker_first):
                form = "speaker utterance..." if speaker_first else "utterance speaker"
                raise InputError(f"a line should be `{form}`", location)
            speaker, utterances = (fields[0], fields[1:]) if speaker_first else (fields[1], fields[:1])
            for utterance in utterances:
                if speakers.setdefault(utterance, speaker) != speaker:
                    raise InputError(f"utterance {one_line(utterance, 80)} has two speakers", location)
        return cls(BY_MAP, speakers, str(path))

    def of(self, utterance: str, folder: str | None = None) -> str:
        """The speaker of an utterance id, whose audio file is in a folder. Raises InputError where it is unknown."""
        if self.rule == BY_MAP:
            if utterance not in self.of_utterance:
                raise InputError(f"{self.source} has no speaker for utterance {utterance}")
            return self.of_utterance[utterance]
        if self.rule == BY_FOLDER and folder is not None:
            return folder
        if found := LIBRISPEECH_ID.fullmatch(utterance):
            return found["speaker"]
        raise InputError(f"utterance {utterance}: its id does not name a speaker; give --utt2spk, or another --norm")

    def group(self, utterance: Utterance, over: str) -> str:
        """Whose statistics an utterance shares over 'speaker' or 'global': its speaker's, or EVERYBODY's."""
        return EVERYBODY if over == "global" else self.of(utterance.id, utterance.folder)

    def describe(self) -> str:
        """The rule in words, for people and for normalization.json."""
        return f"{self.rule} ({Path(self.source).name})" if self.source else self.rule

    def digest(self) -> str:
        """Hash that identifies this rule."""
        if not self.of_utterance:
            return self.rule
        content = json.dumps(dict(self.of_utterance), sort_keys=True)
        return f"{self.rule}, sha256 {hashlib.sha256(content.encode()).hexdigest()}"


def _read_lines(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of a map: file:line, and its fields."""
    number = 0
    with ByteReader(path) as reader:
        while reader.peek(1):
            number += 1
            raw = reader.take_until(b"\n", MAX_MAP_LINE_BYTES)
            raw = reader.take(MAX_MAP_LINE_BYTES) if raw is None else raw
            yield f"{path}:{number}", raw.decode(errors="replace").split()
        if reader.damage:
            raise InputError(f"the rest cannot be read: {reader.damage}", f"{path}:{number}")
