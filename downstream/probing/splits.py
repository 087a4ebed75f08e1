"""Which utterances train, choose and test a probe. An utterance is in one set only, and so are all of its phones."""

from pathlib import Path
from typing import NamedTuple

from utils.corpus.audio_tree import AudioSource, AudioUtterance
from utils.corpus.speakers import BY_FOLDER, BY_ID, LIBRISPEECH_ID, Speakers
from utils.system.errors import InputError

TRAIN, DEV, TEST = SETS = ("train", "dev", "test")
DEV_EVERY = 5  # where there is no audio/test, audio/dev is the test set, and every fifth utterance of train is dev

Files = dict[str, list[AudioUtterance]]


class Splits(NamedTuple):
    """The sets of a corpus.

    Attributes:
        sources: the audio of 'train', 'dev' and 'test'.
        speakers: who speaks in each utterance.
        speakers_from: how that is known, in words.
    """

    sources: dict[str, AudioSource]
    speakers: dict[str, str]
    speakers_from: str


def find_splits(audio: Path, held_out_speakers: list[str] | None = None) -> Splits:
    """The sets of a directory with train, dev and test, each a tree of audio files.

    Without `test`, dev is the test set and every fifth utterance of train is dev. The speaker is the first field of
    ids of LibriSpeech's form, where all are of that form; else the directory that holds the file.

    Args:
        audio: the directory.
        held_out_speakers: split by speaker instead: these are the test set, with all their utterances, and the others'
            utterances of train and dev are train and dev.

    Raises:
        InputError: a set is missing or empty, an utterance is in two, or there is no such speaker.
    """
    files = {name: AudioSource.find(audio / name).files for name in SETS if (audio / name).is_dir()}
    missing = [name for name in (TRAIN, DEV) if name not in files]
    if missing:
        raise InputError(f"{audio / missing[0]} is not a directory; {audio} must hold train, dev and, best, test")
    check_disjoint(files)
    if TEST not in files:
        if len(files[TRAIN]) < 2:
            raise InputError(f"{audio} has no test, and too few utterances in train to take some for dev")
        dev = files[TRAIN][::DEV_EVERY]
        files = {TRAIN: [file for file in files[TRAIN] if file not in dev], DEV: dev, TEST: files[DEV]}
    everything = [file for of_set in files.values() for file in of_set]
    rule = Speakers(BY_ID if all(LIBRISPEECH_ID.fullmatch(file.id) for file in everything) else BY_FOLDER)
    speakers = {file.id: rule.of(file.id, file.folder) for file in everything}
    if held_out_speakers:
        files = by_speaker(files, speakers, held_out_speakers)
    return Splits({name: AudioSource(files[name], audio) for name in SETS}, speakers, rule.describe())


def check_disjoint(files: Files) -> None:
    """Raise InputError where an utterance id is in two sets."""
    first: dict[str, str] = {}
    for name, of_set in files.items():
        for file in of_set:
            if first.setdefault(file.id, name) != name:
                raise InputError(f"{file.location}: utterance {file.id} is in {first[file.id]} as well")


def by_speaker(files: Files, speakers: dict[str, str], held_out: list[str]) -> Files:
    """Sets whose test speakers are in no other set.

    Raises:
        InputError: no such speaker, or nothing is left to train on or to choose by.
    """
    unknown = sorted(set(held_out) - set(speakers.values()))
    if unknown:
        there = ", ".join(sorted(set(speakers.values())))
        raise InputError(f"--held_out_speakers: there is no speaker {unknown[0]}, but {there}")

    def is_held_out(file: AudioUtterance) -> bool:
        return speakers[file.id] in held_out

    split = {name: [file for file in files[name] if not is_held_out(file)] for name in (TRAIN, DEV)}
    for name, left in split.items():
        if not left:
            raise InputError(f"--held_out_speakers leaves no utterance in {name}")
    return split | {TEST: [file for name in SETS for file in files[name] if is_held_out(file)]}
