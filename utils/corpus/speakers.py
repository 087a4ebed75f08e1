"""Who speaks in an utterance: by its id, its folder, or a map."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.corpus.utterance import Utterance
from utils.kaldi.lists import read_list
from utils.system.errors import InputError, one_line

LIBRISPEECH_ID = re.compile(r"(?P<speaker>[A-Za-z0-9_]+)-[A-Za-z0-9_]+-[A-Za-z0-9_]+")
EVERYBODY = "all speakers"  # whose statistics the global mode uses
BY_ID, BY_FOLDER, BY_MAP = "the utterance id's first field", "the parent directory", "a map of speakers"


@dataclass(frozen=True)
class Speakers:
    """Who speaks in an utterance.

    Attributes:
        rule: BY_ID, BY_FOLDER or BY_MAP.
        of_utterance: the speaker of each utterance; with BY_ID, ids that are not in it are taken apart.
        source: for BY_MAP, the file, for errors.
        problem: why speakers cannot be told, for a job that needs them; empty where they can.
        advice: what to do about it.
        is_listed: whether a list names the files; their folders are then not part of their names.
    """

    rule: str = BY_ID
    of_utterance: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    problem: str = ""
    advice: str = ""
    is_listed: bool = False

    @classmethod
    def read(cls, path: str | Path, speaker_first: bool) -> "Speakers":
        """Read Kaldi's utt2spk (`utterance speaker` per line) or, with `speaker_first`, spk2utt.

        Raises:
            InputError: a line of another form, or an utterance of two speakers; names the line.
        """
        speakers: dict[str, str] = {}
        for location, line in read_list(path):
            fields = line.split()
            if len(fields) < 2 or (len(fields) > 2 and not speaker_first):
                form = "speaker utterance..." if speaker_first else "utterance speaker"
                raise InputError(f"a line should be `{form}`", location)
            speaker, utterances = (fields[0], fields[1:]) if speaker_first else (fields[1], fields[:1])
            for utterance in utterances:
                if speakers.setdefault(utterance, speaker) != speaker:
                    raise InputError(f"utterance {one_line(utterance, 80)} has two speakers", location)
        return cls(BY_MAP, speakers, str(path))

    @classmethod
    def by_names(cls, files: Iterable[tuple[str, str, Path]]) -> "Speakers":
        """The speakers of audio, given for each utterance its id, its name and its file.

        By the first field of a name in LibriSpeech's form, or where none has that form, by the file's directory.
        """
        by_folder: dict[str, str] = {}
        by_id: dict[str, str] = {}
        other = None
        for utterance, name, path in files:
            by_folder[utterance] = path.absolute().parent.name
            if found := LIBRISPEECH_ID.fullmatch(name):
                by_id[utterance] = found["speaker"]
            else:
                other = other or path
        if not by_id:
            return cls(BY_FOLDER, by_folder)
        if other is None:
            return cls(BY_ID, by_id)
        problem = f"{other} is not named as LibriSpeech's files are, but others are"
        return cls(BY_ID, by_id, problem=problem, advice="give the speakers by --utt2spk or --spk2utt, or move it away")

    def of(self, utterance: str) -> str:
        """The speaker of an utterance id. Raises InputError where it is unknown."""
        if utterance in self.of_utterance:
            return self.of_utterance[utterance]
        if self.rule != BY_ID:
            raise InputError(f"{self.source} has no speaker for utterance {one_line(utterance, 80)}")
        if found := LIBRISPEECH_ID.fullmatch(utterance):
            return found["speaker"]
        raise InputError(f"the id {utterance} does not name a speaker; give --utt2spk, or another --norm")

    def group(self, utterance: Utterance, over: str) -> str:
        """Whose statistics an utterance shares over 'speaker' or 'global': its speaker's, or EVERYBODY's."""
        return EVERYBODY if over == "global" else self.of(utterance.id)

    def describe(self) -> str:
        """The rule in words, for people and for normalization.json."""
        return f"{self.rule} ({Path(self.source).name})" if self.source else self.rule

    def digest(self) -> str:
        """Hash that identifies this rule."""
        if self.rule == BY_ID or (self.rule == BY_FOLDER and not self.is_listed):
            return self.rule
        content = json.dumps(dict(self.of_utterance), sort_keys=True)
        return f"{self.rule}, sha256 {hashlib.sha256(content.encode()).hexdigest()}"


FROM_IDS = Speakers()
