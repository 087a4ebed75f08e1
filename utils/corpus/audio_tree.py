"""The audio files below directories, also behind links, and files that are named one by one."""

import errno
import os
import stat
from collections import Counter, deque
from pathlib import Path

from utils.corpus.audio_source import DEFAULT_OPTIONS, AudioOptions, AudioSource, Entry, describe_not_read
from utils.system.errors import InputError
from utils.system.reading import raise_unless_of_file

AUDIO_SUFFIXES = (".flac", ".wav", ".wave", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd")
AUDIO_SUFFIXES += (".caf", ".sph", ".nist", ".w64", ".rf64")


def find_audio(paths: list[Path], options: AudioOptions = DEFAULT_OPTIONS) -> AudioSource:
    """These audio files, and all below these directories. An utterance's id is its file's name without the suffix.

    Raises:
        InputError: there is no audio file, a name cannot be an utterance id, or a directory is unreadable.
    """
    folders = [path.absolute() if path.is_dir() else path.absolute().parent for path in paths]
    top = Path(os.path.commonpath(folders))
    found: dict[Path, Entry] = {}
    not_read: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            found[path.absolute()] = Entry.of_file(path, str(path), path.absolute().relative_to(top))
            continue
        files, others = _walk(path, options.skip_errors)
        not_read += others
        for file, size, mtime_ns in sorted(files):
            name = file.absolute().relative_to(top)
            found[file.absolute()] = Entry(file, str(file), name, f"{size}\t{mtime_ns}", size)
    if not found:
        others = f"; {describe_not_read(not_read)}" if not_read else ""
        raise InputError(f"{paths[0]} holds no audio files ({', '.join(AUDIO_SUFFIXES)}){others}")
    return AudioSource.of(list(found.values()), options, not_read=not_read)


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
            raise_unless_of_file(error)
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
