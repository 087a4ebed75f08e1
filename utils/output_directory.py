"""A directory of one tensor an utterance that a long job fills, may be killed while filling, and goes on filling.

made_from.json      what the job was asked for: a directory is only ever continued by the same job
progress.jsonl      a line for each utterance that is done; gone when the job is
<utterance id>.pt   the tensors, each whole (or .npy, where the job writes those)
skipped.txt         what was left out and why, a line an utterance, if anything was
lengths.pkl         written last: a directory that has it is complete
"""

import contextlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.errors import InputError, one_line
from utils.files import (
    LOCK_FILE,
    atomic_write,
    lock_directory,
    naming_file,
    read_json,
    remove_leftovers,
    write_json,
)
from utils.prepared import LENGTHS_FILE, TENSOR_SUFFIX, load_lengths, save_lengths

MADE_FROM_FILE = "made_from.json"
PROGRESS_FILE = "progress.jsonl"
SKIPPED_FILE = "skipped.txt"


class OutputDirectory:
    """Owned by one process at a time; use as a context.

    Args:
        directory: made if missing.
        made_from: what decides the content (sources, sizes, options), as JSON types. A directory that was made from
            something else is refused, or emptied with `overwrite`.
        overwrite: start anew, whatever was there.
        extra_files: names of further files and folders of the job, removed when it starts anew.
        suffixes: the ending of an utterance's file; behind it those that the job might have been told to write.

    Attributes:
        done: what `record` was told of each utterance, in this run and those before it.
        complete: whether the directory was complete when it was opened.

    Raises:
        InputError: the directory holds something else, or another process is filling it.
    """

    def __init__(
        self,
        directory: str | Path,
        made_from: dict[str, Any],
        overwrite: bool = False,
        extra_files: tuple[str, ...] = (),
        suffixes: tuple[str, ...] = (TENSOR_SUFFIX,),
    ) -> None:
        self.path = Path(directory)
        self.done: dict[str, dict[str, Any]] = {}
        self.complete = False
        self._made_from = json.loads(json.dumps(made_from))  # as it will be read back
        self._overwrite = overwrite
        self._suffixes = suffixes
        self._job_files = (MADE_FROM_FILE, PROGRESS_FILE, SKIPPED_FILE, *extra_files)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "OutputDirectory":
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_directory(self.path, "another process that writes into it"))
            remove_leftovers(self.path)
            if self._overwrite:
                self._empty()
            self._check_made_from()
            self.complete = (self.path / LENGTHS_FILE).exists()
            if (self.path / PROGRESS_FILE).is_symlink():
                (self.path / PROGRESS_FILE).unlink()  # replaced, not followed
            self._progress = (self.path / PROGRESS_FILE).open("a+b")
            stack.callback(self._close_progress)
            self._read_progress()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if (self.path / LENGTHS_FILE).exists():
            (self.path / PROGRESS_FILE).unlink(missing_ok=True)

    def _close_progress(self) -> None:
        with naming_file(self.path / PROGRESS_FILE):  # writes again what a full disk did not take
            self._progress.close()

    def tensor_path(self, utterance: str) -> Path:
        """Where an utterance's tensor goes."""
        return self.path / f"{utterance}{self._suffixes[0]}"

    def has(self, utterance: str) -> bool:
        """Whether an utterance was recorded as done and its tensor is there."""
        return utterance in self.done and self.tensor_path(utterance).exists()

    def record(self, utterance: str, **facts: Any) -> None:
        """Note that an utterance's tensor is written, with what a later run needs to know of it (JSON types)."""
        self.done[utterance] = facts
        with naming_file(self.path / PROGRESS_FILE):
            self._progress.write((json.dumps({"id": utterance, **facts}) + "\n").encode())
            self._progress.flush()

    def finish(self, lengths: dict[str, int], skipped: list[str]) -> None:
        """Complete the directory.

        Args:
            lengths: number of true frames for each utterance id, in the order of the source.
            skipped: a line for each utterance that was left out: its id, a tab, and why.
        """
        if skipped:
            with atomic_write(self.path / SKIPPED_FILE) as file:
                for line in skipped:
                    fields = (one_line(field, 1000) for field in line.split("\t", 1))
                    file.write(("\t".join(fields) + "\n").encode())
        else:
            (self.path / SKIPPED_FILE).unlink(missing_ok=True)
        for tensor in self._tensors():
            if tensor.stem not in lengths:
                tensor.unlink()  # of an utterance that an earlier run of the job wrote and this one left out
        save_lengths(self.path, lengths)

    def lengths(self) -> dict[str, int]:
        """The true frames of each utterance of a complete directory."""
        return load_lengths(self.path)

    def _tensors(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.suffix in self._suffixes]

    def _check_made_from(self) -> None:
        made_from_path = self.path / MADE_FROM_FILE
        if not made_from_path.exists():
            others = [entry.name for entry in self.path.iterdir() if entry.name not in (LOCK_FILE, PROGRESS_FILE)]
            if others:
                raise InputError(f"{self.path} already holds other files ({min(others)}); give a new directory")
            write_json(made_from_path, self._made_from)
            return
        before = read_json(made_from_path)
        for key in [*self._made_from, *before]:
            if before.get(key) != self._made_from.get(key):
                raise InputError(
                    f"{self.path} was made with {key} {one_line(before.get(key), 120)}, not "
                    f"{one_line(self._made_from.get(key), 120)}; give another directory, or --overwrite"
                )

    def _empty(self) -> None:
        """Remove what a job of this kind wrote, and nothing else; what makes the directory look whole goes first."""
        if not any((self.path / name).exists() for name in (MADE_FROM_FILE, LENGTHS_FILE)):
            return  # never a directory of ours: left as it is, and refused if it holds anything
        with contextlib.suppress(FileNotFoundError):
            if read_json(self.path / MADE_FROM_FILE).keys().isdisjoint(self._made_from):
                raise InputError(
                    f"{self.path} was made by another script and is not overwritten; give another directory"
                )
        (self.path / LENGTHS_FILE).unlink(missing_ok=True)
        for tensor in self._tensors():
            tensor.unlink()
        for name in reversed(self._job_files):  # made_from.json last: emptying can be killed and done again
            if (self.path / name).is_dir() and not (self.path / name).is_symlink():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)

    def _read_progress(self) -> None:
        """Fill `done` and cut off a last line that a crash left torn: that utterance is done again."""
        self._progress.seek(0)
        whole = 0
        for line in self._progress:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                break
            self.done[entry.pop("id")] = entry
            whole += len(line)
        self._progress.truncate(whole)
