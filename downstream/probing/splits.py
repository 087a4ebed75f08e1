"""The sets that train, choose and test a probe. An utterance is in one set only, and so are all of its phones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datasets import find_split
from utils.corpus.audio_source import DEFAULT_OPTIONS, AudioOptions, AudioSource
from utils.corpus.find_source import find_source
from utils.corpus.manifest import MANIFEST_SUFFIX
from utils.corpus.sources import ArchiveSource, PreparedSource, Source
from utils.corpus.speakers import BY_FOLDER, Speakers
from utils.corpus.utterance import Utterance
from utils.system.errors import InputError

TRAIN, DEV, TEST = SETS = ("train", "dev", "test")
DEV_EVERY = 5  # where there is no audio/test, audio/dev is the test set, and every fifth utterance of train is dev
SPEAKER_DEV_EVERY = 20

Files = dict[str, list[Utterance]]


class Splits(NamedTuple):
    """The sets of a corpus."""

    sources: dict[str, Source]  # by set: 'train', 'dev' and 'test'
    speakers: Mapping[str, str]  # by utterance id
    speakers_from: str  # the rule that gave the speakers, in words


def find_splits(
    data: Path, held_out_speakers: list[str] | None = None, options: AudioOptions = DEFAULT_OPTIONS
) -> Splits:
    """The sets of a directory with train, dev and test, each a tree of audio, a Kaldi data directory or a manifest.

    Without `test`, dev is the test set and every fifth utterance of train is dev. The speaker of an utterance is
    that of a map (utt2spk, or a manifest), else that of its id in LibriSpeech's form, else the name of the file's
    directory. Where these rules differ, sets of audio all use the directory, and sets of features are refused.

    Args:
        data: the directory.
        held_out_speakers: test on all utterances of these speakers; the others' in train and dev are train and dev.
        options: how audio is read.

    Raises:
        InputError: a set is missing or empty, sets of audio and of features are mixed, an utterance is in two, or there
            is no such speaker.
    """
    paths = {name: path for name in SETS if (path := _set_path(data, name)).exists()}
    if missing := [name for name in (TRAIN, DEV) if name not in paths]:
        raise InputError(f"{data / missing[0]} is not a directory; {data} must hold train, dev and preferably test")
    found, files = _find_sets(paths, options)
    rule = _find_speakers(found)
    if TEST not in files:
        files = _take_dev({TRAIN: files[TRAIN], TEST: files[DEV]}, DEV_EVERY, data)
    if held_out_speakers:
        files = by_speaker(files, rule.of_utterance, held_out_speakers)
    return _make_splits(found, files, rule)


def find_speaker_splits(data: Path, options: AudioOptions = DEFAULT_OPTIONS) -> Splits:
    """The sets of a directory with train and test, as in `find_splits`, or two directories whose names start so.

    No speaker of test is in train. Every twentieth utterance of train is dev.

    Raises:
        InputError: a set is missing or empty, speakers are told in different ways, or an utterance or a speaker is in
            both.
    """
    if not data.is_dir():
        raise InputError(f"{data} is not a directory; it must hold train and test")
    names = TRAIN, TEST
    paths = {n: path if (path := _set_path(data, n)).exists() else find_split(data, n) for n in names}
    found, files = _find_sets(paths, options)
    rule = _find_speakers(found, must_agree=True)
    known = {rule.of(file.id) for file in files[TRAIN]}
    if both := [file for file in files[TEST] if rule.of(file.id) in known]:
        raise InputError(f"speaker {rule.of(both[0].id)} is in train as well, but those of test must be new: {data}")
    return _make_splits(found, _take_dev(files, SPEAKER_DEV_EVERY, data), rule)


def _take_dev(files: Files, every: int, data: Path) -> Files:
    """Take some utterances of train for dev, one of `every`. Raises InputError where there are too few."""
    if len(files[TRAIN]) < 2:
        raise InputError(f"{data} has too few utterances in train to take some for dev")
    train = [file for index, file in enumerate(files[TRAIN]) if index % every]
    return {TRAIN: train, DEV: files[TRAIN][::every], TEST: files[TEST]}


def _make_splits(found: dict[str, Source], files: Files, rule: Speakers) -> Splits:
    train = found[TRAIN]
    if isinstance(train, ArchiveSource):
        paths = [path for source in found.values() for path in source.paths]
        sources = {name: replace(train, paths=paths, chosen=files[name]) for name in SETS}
    else:  # what a set reports of its directory is reported once, with the set of the directory's name
        other = AudioSource([], train.options)
        sources = {name: replace(found.get(name, other), files=files[name]) for name in SETS}
    return Splits(sources, rule.of_utterance, rule.describe())


def _set_path(data: Path, name: str) -> Path:
    """The directory or the manifest of a set."""
    manifest = data / f"{name}{MANIFEST_SUFFIX}"
    return manifest if manifest.exists() and not (data / name).exists() else data / name


def _find_sets(paths: dict[str, Path], options: AudioOptions) -> tuple[dict[str, Source], Files]:
    """The source at each path, and its utterances. Raises InputError where sets differ in kind, or share an id."""
    found = {name: find_source([path], options) for name, path in paths.items()}
    kinds = {type(source) for source in found.values()}
    if len(kinds) > 1 or PreparedSource in kinds:
        sets = ", ".join(map(str, paths.values()))
        raise InputError(f"{sets} must all hold audio, or all be data directories of features, not yet prepared")
    files = {name: list(source.unique()) for name, source in found.items()}
    check_disjoint(files)
    return found, files


def _find_speakers(sources: dict[str, Source], must_agree: bool = False) -> Speakers:
    """The speaker of every utterance, by the rule of all the sets, or where those of audio differ by directories.

    Raises:
        InputError: a data directory does not tell speakers; or the rules differ, of features or with `must_agree`.
    """
    rules = {source.speakers.rule: source.speakers for source in sources.values()}
    problems = [source.speakers for source in sources.values() if source.speakers.problem]
    for speakers in problems:
        if not speakers.of_utterance:  # a data directory
            raise InputError(f"{speakers.problem}: add one")
    if len(rules) > 1 and isinstance(sources[TRAIN], ArchiveSource):
        raise InputError(f"{sources[TRAIN]} and other sets identify speakers in different ways: give each a utt2spk")
    if problems and must_agree:
        raise InputError(f"{problems[0].problem}: move it away, or give manifests with speakers")
    if len(rules) > 1 and must_agree:
        ways = " in one set and by ".join(sorted(rules))
        raise InputError(f"speakers are given by {ways} in another; give manifests with speakers")
    if len(rules) > 1 or problems:
        files = [file for source in sources.values() for file in source.utterances()]
        return Speakers(BY_FOLDER, {file.id: Path(file.location).absolute().parent.name for file in files})
    of_all = {file.id: source.speakers.of(file.id) for source in sources.values() for file in source.utterances()}
    return replace(rules.popitem()[1], of_utterance=of_all)


def check_disjoint(files: Files) -> None:
    """Raise InputError where an utterance id is in two sets."""
    first: dict[str, str] = {}
    for name, of_set in files.items():
        for file in of_set:
            if first.setdefault(file.id, name) != name:
                raise InputError(f"utterance {file.id} is in {first[file.id]} as well", file.location)


def by_speaker(files: Files, speakers: Mapping[str, str], held_out: list[str]) -> Files:
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
