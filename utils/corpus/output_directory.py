"""A directory of one file per utterance that a long job fills, may be killed while filling, and continues to fill.

made_from.json      what the job was asked for: a directory is only ever continued by the same job
progress.jsonl      a line for each utterance whose file is about to be written, one when it is done; gone when all are
<utterance id>.pt   the tensors, each whole (or .npy, where the job writes those)
skipped.txt         what was skipped and why, a line per utterance, if anything was
shorter.txt         a line for each utterance that was read but is odd: shorter than promised, silent, ..., if any is
lengths.pkl         written last: a directory that has it is complete

These are the record of what was made here: only files that it lists are ever removed.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.audio.front_ends import with_front_end
from utils.corpus.prepared import ARRAY_SUFFIX, LENGTHS_FILE, TENSOR_SUFFIX, list_utterances, load_lengths, save_lengths
from utils.system.errors import InputError, brief, one_line
from utils.system.files import (
    atomic_write,
    lock_directory,
    naming_file,
    read_json,
    refuse_other_files,
    refuse_special_file,
    remove_leftovers,
    remove_made,
    write_json,
)

MADE_FROM_FILE = "made_from.json"
AUDIO_KEY = "audio"  # in it: the number of audio files, and a digest of their names, sizes and times
PROGRESS_FILE = "progress.jsonl"
SKIPPED_FILE = "skipped.txt"
REMARKS_FILE = "shorter.txt"
POINTS_TO_SHA256 = "points_to_sha256"  # of an .scp, which earlier versions did not record
NO_LONGER_RECORDED = {"batch_size", "chunk"}  # of a directory of features, as earlier versions did
FILE_SUFFIXES = (TENSOR_SUFFIX, ARRAY_SUFFIX)  # of jobs that write a file per utterance


class OutputDirectory:
    """A directory that one process at a time fills; use in a `with` statement.

    Args:
        directory: made if missing.
        made_from: what decides the content (sources, sizes, options), as JSON types. A directory that was made from
            something else is refused, or emptied with `overwrite`. Its "format" is the suffix of an utterance's file.
        overwrite: remove what was made in the directory, and start over.
        extra_files: the names of the further files and folders of a job, given what it was made from.
        facts: what is recorded of each utterance: names and types.
        overwrite_released: with `overwrite`, also start over in a directory of the released script, which holds
            lengths.pkl and the tensors that it names.

    Attributes:
        done: the recorded facts of each utterance, in this run and those before it.
        complete: whether the directory was complete when it was opened.

    Raises:
        InputError: the directory holds something else, or another process is filling it.
    """

    def __init__(
        self,
        directory: str | Path,
        made_from: dict[str, Any],
        overwrite: bool = False,
        extra_files: Callable[[dict[str, Any]], tuple[str, ...]] = lambda made_from: (),
        facts: Mapping[str, type] | None = None,
        overwrite_released: bool = False,
    ) -> None:
        self.path = Path(directory)
        self.done: dict[str, dict[str, Any]] = {}
        self.complete = False
        self._made_from = json.loads(json.dumps(made_from))  # as it will be read back
        self._overwrite, self._overwrite_released = overwrite, overwrite_released
        self._extra_files, self._facts = extra_files, facts or {}
        self._claimed: set[str] = set()  # the utterances whose files may be there
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "OutputDirectory":
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_directory(self.path, "another process that writes into it", self._check))
            stack.callback(self._forget_progress)
            remove_leftovers(self.path)
            if self._overwrite:
                remove_made(self.path, self._recorded())
            if not (self.path / MADE_FROM_FILE).exists():
                write_json(self.path / MADE_FROM_FILE, self._made_from)
            self.complete = (self.path / LENGTHS_FILE).exists()
            self._claimed, whole = self._read_progress()
            stack.push(self._remove_unused)
            self._progress = (self.path / PROGRESS_FILE).open("ab")
            stack.callback(self._close_progress)
            self._progress.truncate(whole)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _remove_unused(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Remove the files of a job that ends by InputError before anything was done: it will have other options."""
        if isinstance(error, InputError) and not self.done and not self.complete:
            remove_made(self.path, self._recorded())

    def _forget_progress(self) -> None:
        """Remove the record of progress of a complete directory, while it is still locked."""
        if (self.path / LENGTHS_FILE).exists():
            (self.path / PROGRESS_FILE).unlink(missing_ok=True)

    def _close_progress(self) -> None:
        with naming_file(self.path / PROGRESS_FILE):  # writes again what a full disk did not take
            self._progress.close()

    def tensor_path(self, utterance: str) -> Path:
        """Where an utterance's tensor goes."""
        return self.path / f"{utterance}{_suffix(self._made_from)}"

    def has(self, utterance: str) -> bool:
        """Whether an utterance was recorded as done and its tensor is there."""
        return utterance in self.done and self.tensor_path(utterance).exists()

    def claim(self, utterance: str) -> None:
        """Note that an utterance's tensor is about to be written."""
        self.done.pop(utterance, None)
        self._claimed.add(utterance)
        self._note({"id": utterance})

    def record(self, utterance: str, **facts: Any) -> None:
        """Note that an utterance is done, with what a later run needs to know of it (JSON types).

        Its `remark`, if any, is listed in shorter.txt when all are done.
        """
        self.done[utterance] = facts
        self._note({"id": utterance, **facts})

    def _note(self, entry: dict[str, Any]) -> None:
        with naming_file(self.path / PROGRESS_FILE):
            self._progress.write((json.dumps(entry) + "\n").encode())
            self._progress.flush()

    def finish(self, lengths: dict[str, int], skipped: list[str]) -> None:
        """Complete the directory.

        Args:
            lengths: number of true frames for each utterance id, in the order of the source.
            skipped: a line for each skipped utterance: its id, a tab, and why.
        """
        remarks = [(utterance, self.done.get(utterance, {}).get("remark")) for utterance in lengths]
        self._write_lines(REMARKS_FILE, [f"{utterance}\t{remark}" for utterance, remark in remarks if remark])
        columns = [[one_line(column, 1000) for column in line.split("\t", 1)] for line in skipped]
        self._write_lines(SKIPPED_FILE, map("\t".join, columns))
        remove_made(self.path, self._files_of(self._claimed - lengths.keys(), self._made_from))  # skipped since
        save_lengths(self.path, lengths)

    def _write_lines(self, name: str, lines: Iterable[str]) -> None:
        """Write a file of lines, or remove it where there are none."""
        if text := "".join(f"{line}\n" for line in lines):
            with atomic_write(self.path / name) as file:
                file.write(text.encode("utf-8", "surrogateescape"))
        else:
            (self.path / name).unlink(missing_ok=True)

    def lengths(self) -> dict[str, int]:
        """The true frames of each utterance of a complete directory."""
        return load_lengths(self.path)

    def _check(self) -> None:
        """Raise InputError where the directory is not to be filled by this job; nothing has been written there yet."""
        made_from_path = self.path / MADE_FROM_FILE
        for name in (PROGRESS_FILE, REMARKS_FILE, *self._extra_files(self._made_from)):
            refuse_special_file(self.path / name)
        if self._overwrite:
            refuse_other_files(self.path, self._recorded())
        elif not made_from_path.exists():
            refuse_other_files(self.path)
        else:
            self._check_made_from(with_front_end(read_json(made_from_path)))
            if (self.path / LENGTHS_FILE).exists():
                self._check_complete()

    def _check_complete(self) -> None:
        suffix = _suffix(self._made_from)
        if suffix in FILE_SUFFIXES:
            list_utterances(self.path, suffix, "; --overwrite to make all of it anew, or give another directory")
        else:
            self.lengths()

    def _check_made_from(self, before: dict[str, Any]) -> None:
        for key in [*self._made_from, *(before.keys() - NO_LONGER_RECORDED)]:
            if not _agree(before.get(key), self._made_from.get(key)):
                old, new = before.get(key), self._made_from.get(key)
                change = f"with {key} {brief(old, 120)}, not {brief(new, 120)}"
                if isinstance(old or new, (dict, list)):  # of hashes
                    change = f"from other {key}"
                    if key == AUDIO_KEY:
                        change += ", by the names, sizes or times of its files"
                raise InputError(f"{self.path} was made {change}; give another directory, or --overwrite")

    def _recorded(self) -> list[str]:
        """The names of all files that were made here; in the order in which removing them can be killed and repeated.

        Raises:
            InputError: they were made by another script.
        """
        made_from_path, lengths_path = self.path / MADE_FROM_FILE, self.path / LENGTHS_FILE
        made_from = read_json(made_from_path) if made_from_path.exists() else None
        if made_from is None and not (self._overwrite_released and lengths_path.exists()):
            return []
        if made_from is not None and made_from.keys().isdisjoint(self._made_from):
            raise InputError(f"{self.path} was made by another script and is not overwritten; give another directory")
        utterances = set(self.lengths() if lengths_path.exists() else ())
        if made_from is None:
            return [*self._files_of(utterances, {}), LENGTHS_FILE]
        utterances |= self._read_progress()[0]
        others = (REMARKS_FILE, SKIPPED_FILE, LENGTHS_FILE, PROGRESS_FILE, MADE_FROM_FILE)
        return [*self._files_of(utterances, made_from), *self._extra_files(made_from), *others]

    def _files_of(self, utterances: set[str], made_from: dict[str, Any]) -> list[str]:
        """The names of those utterances' files that are there; whatever the record says, none is outside."""
        names = {f"{utterance}{_suffix(made_from)}" for utterance in utterances}
        return [entry.name for entry in self.path.iterdir() if entry.name in names]

    def _read_progress(self) -> tuple[set[str], int]:
        """Fill `done`; returns all utterances with a line, and where a last line begins that a crash left torn."""
        self.done, claimed, whole = {}, set(), 0
        with contextlib.suppress(FileNotFoundError), (self.path / PROGRESS_FILE).open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except (ValueError, RecursionError):
                    entry = None
                if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                    break
                utterance = entry.pop("id")
                claimed.add(utterance)
                self.done.pop(utterance, None)
                if entry and all(type(entry.get(name)) is kind for name, kind in self._facts.items()):
                    self.done[utterance] = entry
                whole += len(line)
        return claimed, whole


def suffix_of(directory: Path) -> str:
    """The suffix of the files by utterance in a directory that was made here or by the released script."""
    path = directory / MADE_FROM_FILE
    made_from = read_json(path) if path.exists() else {}
    return next((suffix for suffix in FILE_SUFFIXES if suffix == _suffix(made_from)), TENSOR_SUFFIX)


def _suffix(made_from: dict[str, Any]) -> str:
    return f".{made_from.get('format', TENSOR_SUFFIX[1:])}"


def _agree(before: Any, now: Any) -> bool:
    """Whether two descriptions say the same, but for what the earlier one could not say."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = (before.keys() | now.keys()) - ({POINTS_TO_SHA256} - before.keys())
        return all(_agree(before.get(key), now.get(key)) for key in keys)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_agree, before, now))
    return before == now
