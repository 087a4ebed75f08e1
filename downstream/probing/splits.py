"""The sets that train, choose and test a probe. An utterance is in one set only, and so are all of its phones."""

from pathlib import Path
from typing import NamedTuple

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd
from utils.corpus.audio_tree import AudioSource, AudioUtterance
from utils.corpus.speakers import BY_FOLDER, BY_ID, LIBRISPEECH_ID, Speakers
from utils.system.errors import InputError

TRAIN, DEV, TEST = SETS = ("train", "dev", "test")
DEV_EVERY = 5  # where there is no audio/test, audio/dev is the test set, and every fifth utterance of train is dev

Files = dict[str, list[AudioUtterance]]


class Splits(NamedTuple):
    """The sets of a corpus."""

    sources: dict[str, AudioSource]  # by set: 'train', 'dev' and 'test'
    speakers: dict[str, str]  # by utterance id
    speakers_from: str  # the rule that gave the speakers, in words


def find_splits(
    audio: Path,
    held_out_speakers: list[str] | None = None,
    skip_errors: bool = False,
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END],
) -> Splits:
    """The sets of a directory with train, dev and test, each a tree of audio files.

    Without `test`, dev is the test set and every fifth utterance of train is dev. The speaker is the first field of
    the id where all ids have LibriSpeech's form, else the name of the file's directory.

    Args:
        audio: the directory.
        held_out_speakers: test on all utterances of these speakers; the others' in train and dev are train and dev.
        skip_errors: skip directories that cannot be read.
        front_end: how audio becomes frames.

    Raises:
        InputError: a set is missing or empty, an utterance is in two, or there is no such speaker.
    """
    found = {
        name: AudioSource.find(audio / name, skip_errors=skip_errors, front_end=front_end)
        for name in SETS
        if (audio / name).is_dir()
    }
    missing = [name for name in (TRAIN, DEV) if name not in found]
    if missing:
        raise InputError(f"{audio / missing[0]} is not a directory; {audio} must hold train, dev and, best, test")
    files = {name: source.files for name, source in found.items()}
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
    sources = {name: AudioSource(files[name], audio) for name in SETS}
    for name, source in found.items():
        sources[name].not_read.update(source.not_read)  # reported once, with the set of the directory's name
    return Splits(sources, speakers, rule.describe())


def check_disjoint(files: Files) -> None:
    """Raise InputError where an utterance id is in two sets."""
    first: dict[str, str] = {}
    for name, of_set in files.items():
        for file in of_set:
            if first.setdefault(file.id, name) != name:
                raise InputError(f"utterance {file.id} is in {first[file.id]} as well", file.location)


def by_speaker(files: Files, speakers: dict[str, str], held_out: list[str]) -> Files:
    """Split so that the held-out speakers are in test only. Raises InputError where train or dev would be empty."""
    unknown = sorted(set(held_out) - set(speakers.values()))
    if unknown:
        known = ", ".join(sorted(set(speakers.values())))
        raise InputError(f"--held_out_speakers: there is no speaker {unknown[0]}, but {known}")
    split = {name: [file for file in files[name] if speakers[file.id] not in held_out] for name in (TRAIN, DEV)}
    empty = [name for name, of_set in split.items() if not of_set]
    if empty:
        raise InputError(f"--held_out_speakers leaves no utterance in {empty[0]}")
    return split | {TEST: [file for name in SETS for file in files[name] if speakers[file.id] in held_out]}
