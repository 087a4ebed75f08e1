"""The work of prepare_data.py: utterances from any source to padded tensors, in parallel, resumable.

Without statistics to gather (`--norm none`, `--norm utterance`, `--norm_from`) one pass does it. Otherwise a first
pass keeps the raw frames in a folder of the directory and adds up each speaker's sums, always in the order of the
utterances, so that the result is the same for any number of workers and interruptions; when normalization.json
stands, a second pass scales the frames.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.corpus.frame_readers import NormalizedUtterance, normalized, of_known_speakers
from utils.corpus.normalization import NORMALIZATION_FILE, Normalizer, Speakers
from utils.corpus.output_directory import SKIPPED_FILE, OutputDirectory
from utils.corpus.prepare_steps import Outcome, RawUtterance, ToRawFrames, ToTensors
from utils.corpus.sources import REMARKS_FILE, Source, save_remarks
from utils.kaldi.matrices import BadUtterance
from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.system.workers import ordered_map

RAW_FOLDER, RAW_NORMS = ".raw", ("speaker", "global")  # where raw frames wait for their statistics, and in which modes
FACTS = {"frames": int, "mel_dim": int, "truncated": bool}  # what is recorded of an utterance
CHUNK_BYTES, CHUNK_UTTERANCES = 1 << 20, 8  # what a worker is given at once


class Options(NamedTuple):
    """What prepare_data.py is asked for.

    Attributes:
        max_seq_len: frames of every tensor.
        num_workers: processes; 0 works in this one.
        skip_errors: leave bad utterances out, and list them, instead of stopping.
        overwrite: start anew whatever an earlier job left.
        norm: 'speaker', 'utterance', 'global' or 'none'.
        norm_from: a normalization.json to use instead.
        speakers: who speaks, for the modes that need it.
    """

    max_seq_len: int = 1600
    num_workers: int = 0
    skip_errors: bool = False
    overwrite: bool = False
    norm: str = "none"
    norm_from: Path | None = None
    speakers: Speakers = Speakers()


class Summary(NamedTuple):
    """What a prepared directory holds: counts of utterances and of frames, and how they were normalised.

    `truncated` is None where the directory was complete before.
    """

    utterances: int
    frames: int
    truncated: int | None
    skipped: int
    normalization: str


def prepare(source: Source, save_dir: str | Path, options: Options) -> Summary:
    """Fill a prepared directory, or go on filling it.

    Raises:
        InputError: bad input, or a directory of something else; one line that says what to do.
        Stopped: by a signal; the same call continues.
    """
    normalizer = Normalizer.load(options.norm_from) if options.norm_from else None
    made_from = source.describe() | {
        "max_seq_len": options.max_seq_len,
        "norm": normalizer.digest() if normalizer else options.norm,
    }
    if _needs_speakers(options, normalizer):
        made_from["speakers"] = options.speakers.digest()
    with (
        StopRequest("run the same command again to continue") as stop,
        OutputDirectory(save_dir, made_from, options.overwrite, extra_files, FACTS, overwrite_released=True) as out,
    ):
        job = _Job(source, out, options, stop)
        if not out.complete:
            job.run(normalizer)
        if RAW_FOLDER in extra_files(made_from):
            shutil.rmtree(out.path / RAW_FOLDER, ignore_errors=True)
        return job.summary()


def extra_files(made_from: dict[str, Any]) -> tuple[str, ...]:
    """The names of what preparing writes besides tensors, given what a directory was made from."""
    norm = made_from.get("norm", "none")
    of_norm = () if norm == "none" else (NORMALIZATION_FILE, RAW_FOLDER) if norm in RAW_NORMS else (NORMALIZATION_FILE,)
    return (*of_norm, REMARKS_FILE)


def _needs_speakers(options: Options, normalizer: Normalizer | None) -> bool:
    return (normalizer.mode if normalizer else options.norm) == "speaker"


class _Job:
    """One run of `prepare` over its source."""

    def __init__(self, source: Source, out: OutputDirectory, options: Options, stop: StopRequest) -> None:
        self.source = source
        self.out = out
        self.options = options
        self.stop = stop
        self.skipped: list[str] = []
        self.first: tuple[str, int] | None = None  # the first good utterance and its mel_dim

    def run(self, normalizer: Normalizer | None) -> None:
        """Write every tensor, then lengths.pkl."""
        out, norm = self.out, self.options.norm
        raw_folder = None
        if normalizer is None and norm in RAW_NORMS:
            raw_folder = out.path / RAW_FOLDER
            if not (out.path / NORMALIZATION_FILE).exists():
                self._gather_statistics(raw_folder)
            normalizer = Normalizer.load(out.path)
        elif normalizer is None:
            normalizer = Normalizer(norm)
        if normalizer.mode != "none":
            normalizer.save(out.path / NORMALIZATION_FILE)

        order: list[str] = []
        todo = self._remaining(normalized(self.source, normalizer, self.options.speakers), order, raw_folder)
        self._pass("writing tensors", ToTensors(out.path, self.options.max_seq_len), todo, self._record)
        lengths = {utterance: out.done[utterance]["frames"] for utterance in order if utterance in out.done}
        if not lengths:
            skipped = f": all {len(self.skipped)} were left out, the first: {self.skipped[0]}" if self.skipped else ""
            raise InputError(f"no utterance to prepare in the input{skipped}")
        save_remarks(out.path / REMARKS_FILE, out.done, list(lengths))
        out.finish(lengths, self.skipped)

    def _gather_statistics(self, raw_folder: Path) -> None:
        """The first pass: raw frames into a folder, and normalization.json when all are there."""
        raw_folder.mkdir(exist_ok=True)
        sums: dict[str, np.ndarray] = {}

        def add(utterance: Any, outcome: Outcome) -> None:
            speaker = self.options.speakers.group(utterance, self.options.norm)
            sums[speaker] = sums.get(speaker, 0) + outcome.sums

        self._pass(
            "gathering statistics",
            ToRawFrames(raw_folder, self.options.max_seq_len),
            of_known_speakers(self.source, self.options.speakers, self.options.norm),
            add,
        )
        self.skipped.clear()  # the second pass meets the same errors, in this run or a later one
        normalizer = Normalizer.from_sums(self.options.norm, self.options.speakers, sums, self.options.skip_errors)
        normalizer.save(self.out.path / NORMALIZATION_FILE)

    def _record(self, utterance: NormalizedUtterance, outcome: Outcome) -> None:
        self.out.record(
            utterance.utterance,
            frames=outcome.frames,
            mel_dim=outcome.mel_dim,
            truncated=outcome.truncated,
            remark=outcome.remark,
        )
        if isinstance(utterance.source, RawUtterance):
            utterance.source.remove()

    def _remaining(
        self, utterances: Iterable[NormalizedUtterance], order: list[str], raw_folder: Path | None
    ) -> Iterator[NormalizedUtterance]:
        """The utterances that are still to be done; `order` gets the id of every one."""
        for found in utterances:
            if isinstance(found.source, BadUtterance):
                yield found
                continue
            order.append(found.utterance)
            if not self.out.has(found.utterance):
                self.out.claim(found.utterance)
                if raw_folder:
                    raw = RawUtterance(found.utterance, found.where, found.num_bytes, found.source, raw_folder)
                    found = found._replace(source=raw)
                yield found
            elif self.first is None:
                self.first = (found.where, self.out.done[found.utterance]["mel_dim"])

    def _pass(
        self,
        label: str,
        task: Callable[[list[Any]], list[Outcome]],
        utterances: Iterator[Any],
        on_good: Callable[[Any, Outcome], None],
    ) -> None:
        """Run a task over the utterances and hand each good outcome on, in order; list or raise the errors."""
        in_bytes = self.source.unit == "B"
        bar = tqdm(desc=label, total=self.source.total(), unit=self.source.unit, unit_scale=in_bytes, disable=None)
        results = ordered_map(task, in_chunks(utterances), self.options.num_workers)
        with bar, contextlib.closing(results):
            for chunk, outcomes in results:
                for utterance, outcome in zip(chunk, outcomes, strict=True):
                    error = outcome.error or self._size_error(utterance, outcome)
                    if not error:
                        on_good(utterance, outcome)
                    elif self.options.skip_errors:
                        self.skipped.append(f"{utterance.utterance}\t{error}")
                    else:
                        raise InputError(f"{error}; --on_error skip leaves such utterances out")
                    bar.update(utterance.num_bytes if in_bytes else 1)
                self.stop.check()

    def _size_error(self, utterance: Any, outcome: Outcome) -> str | None:
        """Every utterance must have the feature size of the first."""
        self.first = self.first or (utterance.where, outcome.mel_dim)
        where, mel_dim = self.first
        if outcome.mel_dim == mel_dim:
            return None
        return (
            f"{utterance.where}: utterance {utterance.utterance}: frames of size {outcome.mel_dim}, "
            f"but those of the first, {where}, have size {mel_dim}"
        )

    def summary(self) -> Summary:
        """Counts of a directory that is complete."""
        lengths = self.out.lengths()
        skipped_file = self.out.path / SKIPPED_FILE
        skipped = skipped_file.read_bytes().count(b"\n") if skipped_file.is_file() else 0
        truncated = None if self.out.complete else sum(facts["truncated"] for facts in self.out.done.values())
        path = self.out.path / NORMALIZATION_FILE
        normalization = Normalizer.load(path).describe() if path.exists() else ""
        return Summary(len(lengths), sum(lengths.values()), truncated, skipped, normalization)


def in_chunks(utterances: Iterator[Any]) -> Iterator[list[Any]]:
    """Utterances in lists that are worth a worker's while."""
    chunk, num_bytes = [], 0
    for utterance in utterances:
        chunk.append(utterance)
        num_bytes += utterance.num_bytes
        if num_bytes >= CHUNK_BYTES or len(chunk) == CHUNK_UTTERANCES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk
