"""Features of a whole source: batches by length, a piece of each utterance at a time, resumable.

Utterances are read in the order of the source and gathered in pools; a pool is sorted by length and cut into batches,
so that little is computed in vain. What makes up a pool, and so a batch, depends on the utterances alone: a job that
was killed and goes on writes the same bits. Long recordings are not read before their batch's turn, and then piece by
piece like all others, the state of the recurrent layers carried over.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from utils.audio.log_mel import FRAMES_PER_SECOND
from utils.corpus.frame_readers import FrameReader, NormalizedUtterance
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.sources import REMARKS_FILE, Source, save_remarks
from utils.features.feature_files import FilesByUtterance, KaldiArchive, Spool
from utils.kaldi.matrices import BadUtterance
from utils.rnn.layer import State
from utils.rnn.packing import Packing
from utils.system.errors import InputError, one_line
from utils.system.signals import StopRequest
from utils.system.workers import ordered_map

POOL_BATCHES = 8
POOL_FRAMES = 1 << 18  # in memory: 84 MB of 80-dim frames
ALL_LAYERS, MEAN_OF_LAYERS = "all", "mean"


class Options(NamedTuple):
    """What extraction is asked for.

    Attributes:
        layer: '-1' or another number, 'all' or 'mean'.
        batch_size: utterances a batch.
        chunk: frames of each utterance that are computed at a time.
        num_workers: processes that read; 0 reads in this one.
        skip_errors: leave bad utterances out, and list them, instead of stopping.
    """

    layer: str = "-1"
    batch_size: int = 32
    chunk: int = 1000
    num_workers: int = 0
    skip_errors: bool = False


class Loaded(NamedTuple):
    """What reading an utterance gave: its frames, or about how many there are if they are still to be read, or why not.

    Attributes:
        frames: (frames, mel_dim), or None.
        length: how many there are, or about how many.
        error: what is wrong with it, or None.
    """

    frames: np.ndarray | None = None
    length: int = 0
    error: str | None = None
    remark: str | None = None


class Member(NamedTuple):
    """An utterance of a pool."""

    utterance: NormalizedUtterance
    loaded: Loaded


def pick_layers(layer: str, num_feats: int) -> list[int]:
    """Which of `feats`' layers --layer names: all, their mean, or an index, negative ones from the end.

    Raises:
        InputError: there is no such layer.
    """
    if layer in (ALL_LAYERS, MEAN_OF_LAYERS):
        return list(range(num_feats))
    if not layer.removeprefix("-").isdecimal() or not -num_feats <= int(layer) < num_feats:
        raise InputError(f"--layer {layer}: give {ALL_LAYERS}, {MEAN_OF_LAYERS}, or a number from "
                         f"{-num_feats} to {num_feats - 1}")  # fmt: skip
    return [int(layer) % num_feats]


class Extraction:
    """One run of an extraction.

    Args:
        model: an APCModel in eval mode.
        out: the directory, open.
        files: where features go in it.
        options: what is asked for.
        stop: looked at after each utterance that is read and each piece of a batch.

    Attributes:
        frames, seconds: computed in this run, and the time it took.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        out: OutputDirectory,
        files: FilesByUtterance | KaldiArchive,
        options: Options,
        stop: StopRequest,
    ) -> None:
        self.model, self.out, self.files, self.options, self.stop = model, out, files, options, stop
        self.layers = pick_layers(options.layer, model.num_feats)
        self.device = next(model.parameters()).device
        self.frames, self.seconds = 0, 0.0
        self._skipped: list[str] = []
        self._broken: set[str] = set()  # what was left out when a part of it was computed

    def run(self, source: Source, utterances: Iterable[NormalizedUtterance]) -> None:
        """Write the features of every utterance, in batches, then what completes the directory.

        Args:
            source: for the progress bar.
            utterances: its utterances.

        Raises:
            InputError: an utterance is bad, or there is none.
            Stopped: a signal came; the same call continues.
        """
        order: list[str] = []
        self._start, in_bytes = time.monotonic(), source.unit == "B"
        self._bar = tqdm(total=source.total(), unit=source.unit, unit_scale=in_bytes, disable=None)
        pools = self._pools(utterances, order)
        with self._bar, contextlib.closing(pools):
            for pool in pools:
                for batch in self._batches(pool):
                    if not all(self.files.has(member.utterance.utterance) for member in batch):
                        self._run_batch(batch)
                    self._bar.update(sum(member.utterance.num_bytes if in_bytes else 1 for member in batch))
        done = {utterance: self.out.done[utterance]["frames"] for utterance in order if utterance not in self._broken}
        if not done:
            first = f": {one_line(self._skipped[0], 200)}" if self._skipped else ""
            raise InputError(f"no utterance to extract features of{first}")
        self.files.finish(list(done))
        save_remarks(self.out.path / REMARKS_FILE, self.out.done, list(done))
        self.out.finish(done, self._skipped)

    def real_time_factor(self) -> float:
        """Seconds of work for each second of speech, in this run."""
        return self.seconds * FRAMES_PER_SECOND / max(1, self.frames)

    def _pools(self, utterances: Iterable[NormalizedUtterance], order: list[str]) -> Iterator[list[Member]]:
        """Utterances in pools, read but for those that are done; `order` gets the id of every good one."""
        pool, in_memory = [], 0
        jobs = ((utterance, self._is_done(utterance)) for utterance in utterances)
        results = ordered_map(_load_unless_done, jobs, self.options.num_workers)
        with contextlib.closing(results):
            for (utterance, is_done), loaded in results:
                self.stop.check()
                if is_done:
                    facts = self.out.done[utterance.utterance]
                    loaded = Loaded(None, facts["length"])
                    in_memory += 0 if facts["is_long"] else loaded.length
                if loaded.error:
                    self._skip(utterance, loaded.error)
                    continue
                order.append(utterance.utterance)
                pool.append(Member(utterance, loaded))
                in_memory += 0 if loaded.frames is None else loaded.length
                if len(pool) == POOL_BATCHES * self.options.batch_size or in_memory >= POOL_FRAMES:
                    yield pool
                    pool, in_memory = [], 0
        if pool:
            yield pool

    def _batches(self, pool: list[Member]) -> Iterator[list[Member]]:
        """A pool's batches. Of one that is done in part, what was done is read again."""
        by_length = sorted(pool, key=lambda member: member.loaded.length)
        for start in range(0, len(pool), self.options.batch_size):
            yield by_length[start : start + self.options.batch_size]

    def _run_batch(self, batch: list[Member]) -> None:
        """Compute the features of a batch, and put them into their places."""
        shape = 1 if self.options.layer == MEAN_OF_LAYERS else len(self.layers), self.model.rnn_config.hidden_size
        with contextlib.ExitStack() as stack:
            spools = [stack.enter_context(contextlib.closing(self.files.spool(*shape))) for _ in batch]
            for row, features in self._features(batch):
                self._append(batch[row].utterance, spools[row], features)
                self._show(features.shape[1])
            for member, spool in zip(batch, spools, strict=True):
                self._save(member, spool)

    def _append(self, utterance: NormalizedUtterance, spool: Spool, features: np.ndarray) -> None:
        """Add the features of an utterance's next frames, or leave it out where they cannot be written."""
        try:
            spool.append(self.files.arrange(features))
        except InputError as error:
            self._leave_out(utterance, f"{utterance.where}: utterance {utterance.utterance}: {error}")

    def _show(self, frames: int) -> None:
        """Count frames, and show how fast they come."""
        self.frames += frames
        self.seconds = time.monotonic() - self._start
        self._bar.set_postfix_str(f"RTF {self.real_time_factor():.4f}", refresh=False)
        self._bar.update(0)

    def _save(self, member: Member, spool: Spool) -> None:
        """Put an utterance into its place, unless it is there, or was left out."""
        utterance = member.utterance.utterance
        if utterance in self._broken or self.files.has(utterance):
            return
        place = self.files.save(utterance, spool)
        is_long = member.loaded.frames is None
        facts = place | {"length": member.loaded.length, "is_long": is_long, "remark": member.loaded.remark}
        self.out.record(utterance, frames=spool.frames, **facts)

    @torch.no_grad()
    def _features(self, batch: list[Member]) -> Iterator[tuple[int, np.ndarray]]:
        """The features of a batch's utterances, piece by piece.

        Yields:
            Which utterance of the batch, and float32 (layers, frames, hidden_size) of its next frames.
        """
        readers = [FrameReader(_blocks_of(member)) for member in batch]
        running, state = list(range(len(batch))), ()
        while running:
            pieces = {row: piece for row in running if (piece := self._read(batch[row], readers[row])) is not None}
            if not pieces:
                return
            state = tuple(part[:, [running.index(row) for row in pieces]] for part in state)
            features, state = self._piece_features(list(pieces.values()), state)
            yield from zip(pieces, features, strict=True)
            running = list(pieces)  # the order of the state
            self.stop.check()

    def _piece_features(self, pieces: list[np.ndarray], state: State) -> tuple[list[np.ndarray], State]:
        """The features of pieces (frames, mel_dim), each (layers, frames, hidden_size), and the state after them."""
        lengths = torch.tensor([len(piece) for piece in pieces])  # (batch,)
        inputs = pad_sequence([torch.from_numpy(piece) for piece in pieces], batch_first=True)
        longest = inputs.size(1)
        packing = Packing.from_lengths(lengths, longest, self.device)
        packed = inputs.to(self.device).flatten(0, 1)[packing.index]  # (frames, mel_dim)
        outputs, state = self.model.encode(packed, packing, state, self.layers)
        outputs = torch.stack(outputs)  # (layers, frames, hidden_size)
        if self.options.layer == MEAN_OF_LAYERS:
            outputs = outputs.mean(0, keepdim=True)
        padded = outputs.new_zeros(outputs.size(0), len(pieces) * longest, outputs.size(2))
        padded.index_copy_(1, packing.index, outputs)
        padded = padded.cpu().unflatten(1, (len(pieces), longest)).numpy()  # (layers, batch, longest, hidden_size)
        return [padded[:, row, : len(piece)] for row, piece in enumerate(pieces)], state

    def _read(self, member: Member, reader: FrameReader) -> np.ndarray | None:
        """The next frames of an utterance, or None at its end or where it is bad."""
        utterance, error = member.utterance, None
        if utterance.utterance in self._broken:
            return None
        try:
            piece = reader.read(self.options.chunk)
        except InputError as found:
            error = str(found)
        else:
            if piece is None or piece.shape[1] == self.model.mel_dim:
                return piece
            error = (f"{utterance.where}: utterance {utterance.utterance}: frames of size {piece.shape[1]}, "
                     f"but the model reads {self.model.mel_dim}")  # fmt: skip
        self._leave_out(utterance, error)
        return None

    def _is_done(self, utterance: NormalizedUtterance) -> bool:
        return self.files.has(utterance.utterance) and not isinstance(utterance.source, BadUtterance)

    def _leave_out(self, utterance: NormalizedUtterance, error: str) -> None:
        """Leave an utterance out of which a part was computed, or stop."""
        self._broken.add(utterance.utterance)
        self._skip(utterance, error)

    def _skip(self, utterance: NormalizedUtterance, error: str) -> None:
        """Leave an utterance out, or stop."""
        if not self.options.skip_errors:
            raise InputError(f"{error}; --on_error skip leaves such utterances out")
        self._skipped.append(f"{utterance.utterance}\t{error}")


def _load_unless_done(job: tuple[NormalizedUtterance, bool]) -> Loaded:
    """Read an utterance, unless it is done or long."""
    utterance, is_done = job
    if is_done:
        return Loaded()
    length = utterance.long_frames()
    frames = None
    try:
        if length is None:
            frames = utterance.load()
            length = len(frames)
        return Loaded(frames, length, remark=utterance.remark())
    except InputError as error:
        return Loaded(error=str(error))


def _blocks_of(member: Member) -> Iterator[np.ndarray]:
    """An utterance's frames, from memory where they were read."""
    return member.utterance.blocks() if member.loaded.frames is None else iter([member.loaded.frames])
