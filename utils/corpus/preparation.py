"""The work of prepare_data.py: utterances of any source to padded tensors, in parallel, resumable.

Where frames are scaled by statistics of the corpus, a first pass gathers them (scaling.py); the second one writes the
tensors. Audio is thus read twice: that costs time, and saves a copy of the whole corpus on the disk.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.corpus.normalization import NORMALIZATION_FILE, Normalizer
from utils.corpus.output_directory import SKIPPED_FILE, OutputDirectory
from utils.corpus.passes import Pass, remaining
from utils.corpus.prepared import TENSOR_SUFFIX, save_tensor
from utils.corpus.scaling import Scaling, find_normalizer, scaled
from utils.corpus.sources import Source
from utils.corpus.utterance import Utterance
from utils.system.errors import InputError
from utils.system.files import remove_made
from utils.system.signals import StopRequest

FACTS = {"frames": int, "mel_dim": int, "truncated": bool}  # recorded of each utterance
MAX_SEQ_LEN = 1600  # frames
RAW_FOLDER = ".raw"  # where an earlier version kept raw frames until a job was done
MAX_MEL_DIM = 1 << 14  # a frame of more numbers is a file of something else


class Summary(NamedTuple):
    """The content of a prepared directory: counts of utterances and of frames, and how they were normalised."""

    utterances: int
    frames: int
    truncated: int | None  # None where the directory was complete before
    skipped: int
    normalization: str


def write_tensor(utterance: Utterance, directory: Path, max_seq_len: int) -> dict[str, Any]:
    """Write the tensor (max_seq_len, mel_dim) of an utterance; returns the facts to record. Raises InputError."""
    frames, is_truncated = first_frames(utterance, max_seq_len)
    length, mel_dim = frames.shape
    if mel_dim > MAX_MEL_DIM:
        raise utterance.error(f"{mel_dim} numbers are not a frame (at most {MAX_MEL_DIM})")
    padded = torch.zeros(max_seq_len, mel_dim)
    padded[:length] = torch.from_numpy(frames)
    save_tensor(directory / f"{utterance.id}{TENSOR_SUFFIX}", padded)
    return {"frames": length, "mel_dim": mel_dim, "truncated": is_truncated, "remark": utterance.remark()}


def first_frames(utterance: Utterance, most: int) -> tuple[np.ndarray, bool]:
    """The first frames of an utterance, (frames, mel_dim), `most` at most, and whether there are more.

    A long recording is read in blocks, to its end, where it may turn out to be damaged.
    """
    if utterance.long_frames() is None:
        frames = utterance.load()
        return frames[:most], len(frames) > most
    kept, length = [], 0
    for block in utterance.blocks():
        if length < most:
            kept.append(block[: most - length])
        length += len(block)
    return np.concatenate(kept), length > most


def prepare(
    source: Source,
    save_dir: str | Path,
    scaling: Scaling,
    max_seq_len: int = MAX_SEQ_LEN,
    num_workers: int = 0,
    skip_errors: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Fill a prepared directory, or continue to fill it.

    Args:
        source: the utterances.
        save_dir: the directory.
        scaling: how frames are scaled.
        max_seq_len: frames of every tensor.
        num_workers, skip_errors: as of `Pass`.
        overwrite: start over whatever an earlier job left.

    Raises:
        InputError: bad input, or a directory of something else.
        Stopped: by a signal; the same call continues.
    """
    made_from = source.describe() | {"max_seq_len": max_seq_len, **scaling.describe()}
    with (
        StopRequest("run the same command again to continue") as stop,
        OutputDirectory(save_dir, made_from, overwrite, extra_files, FACTS, overwrite_released=True) as out,
    ):
        if not out.complete:
            if scaling.norm != "none":
                remove_made(out.path, (RAW_FOLDER,))
            reading = Pass(source, num_workers, skip_errors, stop)
            normalizer = find_normalizer(reading, scaling, out.path)
            _write_tensors(reading, scaled(source, normalizer, scaling.speakers), out, max_seq_len)
        return _summarize(out)


def extra_files(made_from: dict[str, Any]) -> tuple[str, ...]:
    """The files that preparing writes besides tensors, given what a directory was made from."""
    return () if made_from.get("norm", "none") == "none" else (NORMALIZATION_FILE, RAW_FOLDER)


def _write_tensors(reading: Pass, utterances: Iterable[Utterance], out: OutputDirectory, max_seq_len: int) -> None:
    """Write every tensor that is not there yet, then lengths.pkl."""
    order: list[str] = []

    def is_done_else_claim(utterance: Utterance) -> bool:
        """Whether an utterance is done; one that is not is claimed."""
        if not out.has(utterance.id):
            out.claim(utterance.id)
            return False
        # the size that all must have is that of the first utterance, written in this run or before
        reading.first = reading.first or (utterance.location, out.done[utterance.id]["mel_dim"])
        return True

    work = partial(write_tensor, directory=out.path, max_seq_len=max_seq_len)
    for utterance, facts in reading.map("writing tensors", work, remaining(utterances, is_done_else_claim, order)):
        if reading.keep_if_same_size(utterance, facts["mel_dim"]):
            out.record(utterance.id, **facts)
    lengths = {name: out.done[name]["frames"] for name in order if out.has(name)}
    if not lengths:
        skipped = reading.skipped
        reason = f": all {len(skipped)} were skipped, the first: {skipped[0]}" if skipped else ""
        raise InputError(f"no utterance to prepare in the input{reason}")
    out.finish(lengths, reading.skipped)


def _summarize(out: OutputDirectory) -> Summary:
    """Counts of a directory that is complete."""
    lengths = out.lengths()
    skipped_file = out.path / SKIPPED_FILE
    skipped = skipped_file.read_bytes().count(b"\n") if skipped_file.is_file() else 0
    truncated = None if out.complete else sum(facts["truncated"] for facts in out.done.values())
    path = out.path / NORMALIZATION_FILE
    normalization = Normalizer.load(path).describe() if path.exists() else ""
    return Summary(len(lengths), sum(lengths.values()), truncated, skipped, normalization)
