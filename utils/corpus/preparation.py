"""The work of prepare_data.py: utterances of any source to padded tensors, in parallel, resumable.

Where frames are scaled by statistics of the corpus, a first pass gathers them (scaling.py); the second one writes the
tensors. Audio is thus read twice: that costs time, and saves a copy of the whole corpus on the disk.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.corpus.normalization import NORMALIZATION_FILE, Normalizer
from utils.corpus.output_directory import SKIPPED_FILE, OutputDirectory
from utils.corpus.passes import Pass, remaining
from utils.corpus.prepared import TENSOR_SUFFIX, save_tensor
from utils.corpus.scaling import Scaling, find_normalizer, scaled
from utils.corpus.sources import REMARKS_FILE, Source, save_remarks
from utils.corpus.utterance import Utterance
from utils.system.errors import InputError
from utils.system.signals import StopRequest

FACTS = {"frames": int, "mel_dim": int, "truncated": bool}  # recorded of each utterance
MAX_MEL_DIM = 1 << 14  # a frame of more numbers is a file of something else


class PrepareOptions(NamedTuple):
    """The settings of a preparation.

    Attributes:
        max_seq_len: frames of every tensor.
        num_workers: processes; 0 works in this one.
        skip_errors: skip bad utterances, and list them, instead of stopping.
        overwrite: start anew whatever an earlier job left.
        scaling: how frames are scaled.
    """

    max_seq_len: int = 1600
    num_workers: int = 0
    skip_errors: bool = False
    overwrite: bool = False
    scaling: Scaling = Scaling()


class Summary(NamedTuple):
    """The content of a prepared directory: counts of utterances and of frames, and how they were normalised.

    `truncated` is None where the directory was complete before.
    """

    utterances: int
    frames: int
    truncated: int | None
    skipped: int
    normalization: str


class Written(NamedTuple):
    """A tensor that was written; recorded in the directory.

    Attributes:
        frames: the true ones, after truncation.
        mel_dim: size of a frame.
        truncated: whether the utterance was longer.
        remark: what people should know of the utterance.
    """

    frames: int
    mel_dim: int
    truncated: bool
    remark: str | None


class WriteTensor(NamedTuple):
    """Write an utterance's tensor (max_seq_len, mel_dim) into a directory."""

    directory: Path
    max_seq_len: int

    def __call__(self, utterance: Utterance) -> Written:
        """Raises InputError where the utterance is bad."""
        frames = utterance.load()  # (frames, mel_dim)
        length, mel_dim = min(len(frames), self.max_seq_len), frames.shape[1]
        if mel_dim > MAX_MEL_DIM:
            raise utterance.error(f"{mel_dim} numbers are not a frame (at most {MAX_MEL_DIM})")
        padded = torch.zeros(self.max_seq_len, mel_dim)
        padded[:length] = torch.from_numpy(frames[:length])
        save_tensor(self.directory / f"{utterance.id}{TENSOR_SUFFIX}", padded)
        return Written(length, mel_dim, len(frames) > self.max_seq_len, utterance.remark())


def prepare(source: Source, save_dir: str | Path, options: PrepareOptions) -> Summary:
    """Fill a prepared directory, or continue to fill it.

    Raises:
        InputError: bad input, or a directory of something else.
        Stopped: by a signal; the same call continues.
    """
    made_from = source.describe() | {"max_seq_len": options.max_seq_len, **options.scaling.describe()}
    with (
        StopRequest("run the same command again to continue") as stop,
        OutputDirectory(save_dir, made_from, options.overwrite, extra_files, FACTS, overwrite_released=True) as out,
    ):
        if not out.complete:
            normalizer = find_normalizer(
                source, options.scaling, out.path, options.num_workers, options.skip_errors, stop
            )
            _write_tensors(source, scaled(source, normalizer, options.scaling.speakers), out, options, stop)
        return _summarize(out)


def extra_files(made_from: dict[str, Any]) -> tuple[str, ...]:
    """The files that preparing writes besides tensors, given what a directory was made from."""
    return (REMARKS_FILE,) if made_from.get("norm", "none") == "none" else (REMARKS_FILE, NORMALIZATION_FILE)


def _write_tensors(
    source: Source, utterances: Iterable[Utterance], out: OutputDirectory, options: PrepareOptions, stop: StopRequest
) -> None:
    """Write every tensor that is not there yet, then lengths.pkl."""
    order: list[str] = []
    writing = Pass(source, "writing tensors", options.num_workers, options.skip_errors, stop)

    def is_done(utterance: Utterance) -> bool:
        has = out.has(utterance.id)
        if has:  # the size that all must have is that of the first utterance, written in this run or before
            writing.first = writing.first or (utterance.location, out.done[utterance.id]["mel_dim"])
        return has

    work = WriteTensor(out.path, options.max_seq_len)
    for utterance, written in writing.map(work, out.claim_each(remaining(utterances, is_done, order))):
        if writing.has_size(utterance, written.mel_dim):
            out.record(utterance.id, **written._asdict())
    lengths = {name: out.done[name]["frames"] for name in order if out.has(name)}
    if not lengths:
        skipped = (
            f": all {len(writing.skipped)} were skipped, the first: {writing.skipped[0]}" if writing.skipped else ""
        )
        raise InputError(f"no utterance to prepare in the input{skipped}")
    save_remarks(out.path, out.done, list(lengths))
    out.finish(lengths, writing.skipped)


def _summarize(out: OutputDirectory) -> Summary:
    """Counts of a directory that is complete."""
    lengths = out.lengths()
    skipped_file = out.path / SKIPPED_FILE
    skipped = skipped_file.read_bytes().count(b"\n") if skipped_file.is_file() else 0
    truncated = None if out.complete else sum(facts["truncated"] for facts in out.done.values())
    path = out.path / NORMALIZATION_FILE
    normalization = Normalizer.load(path).describe() if path.exists() else ""
    return Summary(len(lengths), sum(lengths.values()), truncated, skipped, normalization)
