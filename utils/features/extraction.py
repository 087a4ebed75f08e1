"""Features of a whole source: batches by length, a piece of each utterance at a time, resumable.

Utterances are read in the order of the source and gathered in pools; a pool is sorted by length and cut into batches,
so that little is computed in vain. Long recordings are not read before their batch's turn, and then piece by piece
like all others, the state of the recurrent layers carried over. A job that was killed computes what is not done yet:
in other batches perhaps, so that its features equal those of an uninterrupted one to float precision.
"""

import argparse
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from utils.audio.frames import FRAMES_PER_SECOND
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.passes import Pass, remaining
from utils.corpus.utterance import Utterance, UtteranceError
from utils.features.feature_files import FeatureWriter
from utils.rnn.layer import State
from utils.rnn.packing import Packing
from utils.rnn.precision import autocast
from utils.system.errors import InputError, one_line
from utils.system.workers import in_parts

if TYPE_CHECKING:
    from apc_model import APCModel

POOL_BATCHES = 8
LONG_AT_ONCE = 32  # utterances in a batch, of those that are not held
POOL_FRAMES = 1 << 18  # in memory: 84 MB of 80-dim frames
ALL_LAYERS, MEAN_OF_LAYERS = "all", "mean"


class Member(NamedTuple):
    """An utterance of a pool.

    Attributes:
        frames: (frames, mel_dim), or None where they are to be read in blocks.
        length: the number of frames, approximate where they are not read yet.
    """

    utterance: Utterance
    frames: np.ndarray | None
    length: int
    remark: str | None

    def frames_in_memory(self) -> int:
        """How many frames are held."""
        return 0 if self.frames is None else self.length

    def blocks(self) -> Iterator[np.ndarray]:
        """Its frames (some frames, mel_dim), from memory where they were read."""
        return self.utterance.blocks() if self.frames is None else iter([self.frames])


def pick_layers(layer: str, num_feats: int) -> list[int]:
    """Which of `feats`' layers --layer names: all, their mean, or an index. Raises InputError where there is none."""
    if layer in (ALL_LAYERS, MEAN_OF_LAYERS):
        return list(range(num_feats))
    if not layer.removeprefix("-").isdecimal() or not -num_feats <= int(layer) < num_feats:
        numbers = f"a number from {-num_feats} to {num_feats - 1}"
        raise InputError(f"--layer {layer}: give {ALL_LAYERS}, {MEAN_OF_LAYERS}, or {numbers}")
    return [int(layer) % num_feats]


class Extraction:
    """One run of an extraction.

    Args:
        model: in eval mode.
        reading: reads the utterances; its request to stop is checked after each piece of a batch, too.
        out: the directory, open.
        files: writes features into it.
        args: --layer, --batch_size, --chunk and --precision.
    """

    def __init__(
        self, model: "APCModel", reading: Pass, out: OutputDirectory, files: FeatureWriter, args: argparse.Namespace
    ) -> None:
        self.model, self.out, self.files, self.args = model, out, files, args
        self.layers = pick_layers(args.layer, model.num_feats)
        self.device = next(model.parameters()).device
        self.frames, self.seconds = 0, 0.0
        self._pass = reading

    def run(self, utterances: Iterable[Utterance]) -> None:
        """Write the features of every utterance, in batches, then complete the directory.

        Raises:
            InputError: an utterance is bad, or there is none.
            Stopped: a signal came; the same call continues.
        """
        order: list[str] = []
        self._start = time.monotonic()
        todo = remaining(utterances, lambda utterance: self.files.has(utterance.id), order)
        with self._pass.open_bar("extracting"), contextlib.closing(self._pools(todo)) as pools:
            for pool in pools:
                pool.sort(key=lambda member: member.length)
                for batch in self._batches(pool):
                    self._run_batch(batch)
        done = {name: self.out.done[name]["frames"] for name in order if self.files.has(name)}
        if not done:
            first = f": {one_line(self._pass.skipped[0], 200)}" if self._pass.skipped else ""
            raise InputError(f"no utterance to extract features of{first}")
        self.files.finish(list(done))
        self.out.finish(done, self._pass.skipped)

    def real_time_factor(self) -> float:
        """Seconds of work for each second of speech, in this run."""
        return self.seconds * FRAMES_PER_SECOND / max(1, self.frames)

    def _pools(self, utterances: Iterable[Utterance]) -> Iterator[list[Member]]:
        """Utterances in pools, read but for the long ones."""
        with contextlib.closing(self._pass.outcomes(_read_unless_long, utterances)) as results:
            members, most = (member for _, member in results), POOL_BATCHES * self.args.batch_size
            yield from in_parts(members, Member.frames_in_memory, POOL_FRAMES, most)

    def _batches(self, pool: list[Member]) -> Iterator[list[Member]]:
        """Batches of a pool; of utterances that are read piece by piece few, since each keeps files open."""
        is_long = [member.frames is None for member in pool]
        for kind, most in (False, self.args.batch_size), (True, min(self.args.batch_size, LONG_AT_ONCE)):
            members = [member for member, of_kind in zip(pool, is_long, strict=True) if of_kind == kind]
            yield from (members[start : start + most] for start in range(0, len(members), most))

    def _run_batch(self, batch: list[Member]) -> None:
        """Compute the features of a batch, and write them."""
        num_layers = 1 if self.args.layer == MEAN_OF_LAYERS else len(self.layers)
        size = self.model.rnn_config.hidden_size
        with contextlib.ExitStack() as stack:
            spools = [stack.enter_context(contextlib.closing(self.files.spool(num_layers, size))) for _ in batch]
            bad: set[int] = set()
            for row, features in self._features(batch, bad):
                try:
                    spools[row].append(self.files.arrange(features))
                except InputError as error:
                    self._skip(batch, row, error, bad)
                self._show(features.shape[1])
            for row, (member, spool) in enumerate(zip(batch, spools, strict=True)):
                if row not in bad:
                    place = self.files.save(member.utterance.id, spool)
                    self.out.record(member.utterance.id, frames=spool.frames, remark=member.remark, **place)
                self._pass.bar.update(member.utterance.size)

    def _skip(self, batch: list[Member], row: int, error: InputError, bad: set[int]) -> None:
        """Skip an utterance of a batch, a part of which may have been computed, or stop."""
        utterance = batch[row].utterance
        self._pass.skip(utterance, error if isinstance(error, UtteranceError) else utterance.error(error))
        bad.add(row)

    def _show(self, frames: int) -> None:
        """Count frames, and show how fast they come."""
        self.frames += frames
        self.seconds = time.monotonic() - self._start
        self._pass.bar.set_postfix_str(f"RTF {self.real_time_factor():.4f}", refresh=False)
        self._pass.bar.update(0)

    @torch.no_grad()
    def _features(self, batch: list[Member], bad: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The features of a batch's utterances, piece by piece.

        `bad` gets the numbers of utterances that turn out to be bad, which are not read any further.

        Yields:
            The number of an utterance, and float32 (layers, frames, hidden_size) of its next frames.
        """
        readers = [in_pieces(member.blocks(), self.args.chunk) for member in batch]
        running, state = list(range(len(batch))), ()
        while running:
            pieces = {}
            for row in [row for row in running if row not in bad]:
                try:
                    if (piece := next(readers[row], None)) is None:
                        continue
                    if piece.shape[1] != self.model.mel_dim:
                        raise InputError(f"frames of size {piece.shape[1]}, but the model reads {self.model.mel_dim}")
                    pieces[row] = piece
                except InputError as error:
                    self._skip(batch, row, error, bad)
            if not pieces:
                return
            state = tuple(part[:, [running.index(row) for row in pieces]] for part in state)
            features, state = self._piece_features(list(pieces.values()), state)
            yield from zip(pieces, features, strict=True)
            running = list(pieces)  # the order of the state
            self._pass.stop.check()

    def _piece_features(self, pieces: list[np.ndarray], state: State) -> tuple[list[np.ndarray], State]:
        """The features of pieces (frames, mel_dim), each (layers, frames, hidden_size), and the state after them."""
        lengths = torch.tensor([len(piece) for piece in pieces])  # (batch,)
        inputs = pad_sequence([torch.from_numpy(piece) for piece in pieces], batch_first=True)
        longest = inputs.size(1)
        packing = Packing.from_lengths(lengths, longest, self.device)
        packed = packing.pack(inputs.to(self.device))  # (frames, mel_dim)
        with autocast(self.device, self.args.precision):
            outputs, state = self.model.encode(packed, packing, state, self.layers)
        outputs = torch.stack(outputs).float()  # (layers, frames, hidden_size)
        if self.args.layer == MEAN_OF_LAYERS:
            outputs = outputs.mean(0, keepdim=True)
        padded = packing.unpack(outputs, len(pieces), longest)  # (layers, batch, longest, hidden_size)
        padded = padded.cpu().numpy()
        return [padded[:, row, : len(piece)] for row, piece in enumerate(pieces)], state


def in_pieces(blocks: Iterable[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """The frames of blocks (some frames, mel_dim), this many at a time; the last piece may have fewer."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) < frames:
            continue
        together = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        whole = len(together) - len(together) % frames
        for start in range(0, whole, frames):
            yield together[start : start + frames]
        waiting = [together[whole:]] if whole < len(together) else []
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def _read_unless_long(utterance: Utterance) -> Member:
    frames, length = None, utterance.long_frames()
    if length is None:
        frames = utterance.load()
        length = len(frames)
    return Member(utterance, frames, length, utterance.remark())
