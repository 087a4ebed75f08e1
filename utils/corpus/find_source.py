"""Find out what paths name: prepared data, audio, a Kaldi data directory, a manifest, or archives."""

import atexit
import glob
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from utils.audio.front_ends import FrontEnd
from utils.corpus.audio_source import CONVERTIBLE_SUFFIXES, DEFAULT_OPTIONS, AudioOptions, AudioSource, Entry
from utils.corpus.audio_tree import AUDIO_SUFFIXES, find_audio
from utils.corpus.data_directory import WAV, is_data_directory, read_data_directory
from utils.corpus.manifest import MANIFEST_SUFFIX, read_manifest
from utils.corpus.output_directory import MADE_FROM_FILE
from utils.corpus.prepared import LENGTHS_FILE
from utils.corpus.sources import ArchiveSource, PreparedSource, Source
from utils.corpus.speakers import Speakers
from utils.kaldi.read_archives import archive_path, check_no_command
from utils.system.errors import InputError
from utils.system.reading import exists

STANDARD_INPUT, STDIN_ID = "-", "stdin"
BLOCK_BYTES = 1 << 20


def find_source(paths: list[Path], options: AudioOptions = DEFAULT_OPTIONS) -> Source:
    """The source that paths name.

    A directory is prepared data (it has a lengths.pkl), a Kaldi data directory (a wav.scp or feats.scp) or a tree of
    audio. Files are audio, one manifest (.tsv), or archives; `-` is an audio file on standard input.

    Raises:
        InputError: the paths name nothing that can be read, or sources of different kinds.
    """
    if paths == [Path(STANDARD_INPUT)]:
        return read_standard_input(options)
    paths = _expand(paths)
    kinds = {_kind(path) for path in paths}
    if kinds == {"archive"}:
        return ArchiveSource(paths, front_end=options.archives_of)
    if kinds <= {"tree", "audio"}:
        return find_audio(paths, options)
    if len(paths) > 1:
        raise InputError(f"{', '.join(map(str, paths))}: give one directory, audio files, or archives only")
    path, kind = paths[0], kinds.pop()
    if kind == "unfinished":
        raise InputError(f"{path} has no {LENGTHS_FILE}: prepare_data.py was not done with it")
    if kind == "prepared":
        return PreparedSource.find(path)
    return read_data_directory(path, options) if kind == "data directory" else read_manifest(path, options)


def find_archives(paths: list[Path], front_end: FrontEnd | None) -> ArchiveSource:
    """The source that archives are, made by a front end that may be unknown. Raises InputError for anything else."""
    for path in paths:
        if _kind(path) != "archive":
            raise InputError(f"{path} is not an archive of features; give it to --data")
    return ArchiveSource(paths, front_end=front_end)


def _kind(path: Path) -> str:
    """What a path names, by what is there."""
    if path.is_dir():
        made = {LENGTHS_FILE: "prepared", MADE_FROM_FILE: "unfinished"}
        name = next((name for name in made if (path / name).exists()), None)
        return made[name] if name else "data directory" if is_data_directory(path) else "tree"
    if archive_path(path)[0].name == WAV:
        raise InputError(f"{path} is a list of audio: give its directory: --data {archive_path(path)[0].parent}")
    if path.suffix.lower() in (*AUDIO_SUFFIXES, *CONVERTIBLE_SUFFIXES):
        return "audio"
    return "manifest" if path.suffix.lower() == MANIFEST_SUFFIX else "archive"


def _expand(paths: list[Path]) -> list[Path]:
    """The paths, with patterns that no shell has expanded."""
    expanded = []
    for path in paths:
        file = archive_path(path)[0]
        check_no_command(str(file), "input")
        is_there = exists(file)
        found = [path] if is_there else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not found:
            raise InputError(f"{path} does not exist")
        expanded += found
    return expanded


def read_standard_input(options: AudioOptions) -> AudioSource:
    """The audio file on standard input, kept in a temporary file while this process runs; id and speaker: `stdin`."""
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: pipe an audio file into it")
    descriptor, name = tempfile.mkstemp(prefix="stdin-")
    atexit.register(Path(name).unlink, missing_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(descriptor, "wb") as file:
        while block := sys.stdin.buffer.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
        size = file.tell()
    entry = Entry(Path(name), "standard input", None, digest.hexdigest(), size, STDIN_ID, is_piped=True)
    return AudioSource.of([entry], options, Speakers(of_utterance={STDIN_ID: STDIN_ID}))
