"""Passes over the utterances of a source: several processes, a progress bar, and a list of what is skipped."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from utils.corpus.sources import Source
from utils.corpus.utterance import BadUtterance, Utterance
from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.system.workers import in_parts, ordered_map

CHUNK_BYTES, CHUNK_UTTERANCES = 1 << 20, 8  # what a worker is given at once

tqdm.monitor_interval = 0  # the bar's thread: a worker must not be forked while a thread may hold a lock

T = TypeVar("T")
Of = TypeVar("Of", bound=Utterance)


class Pass:
    """A pass over utterances, or several; `map` does the work of one, `skip` decides what an error means.

    Args:
        source: what the progress bar counts.
        num_workers: processes; 0 works in this one.
        skip_errors: skip bad utterances, and list them, instead of stopping.
        stop: checked after each chunk of utterances.

    Attributes:
        skipped: for each utterance that the last pass skipped its id, a tab, and the reason.
        bar: its progress bar.
        first: location and mel_dim of its first good utterance, which all must have.
    """

    bar: tqdm

    def __init__(self, source: Source, num_workers: int, skip_errors: bool, stop: StopRequest) -> None:
        self.source, self.num_workers, self.skip_errors, self.stop = source, num_workers, skip_errors, stop
        self.skipped: list[str] = []
        self.first: tuple[str, int] | None = None

    def map(self, label: str, work: Callable[[Utterance], T], utterances: Iterable[Of]) -> Iterator[tuple[Of, T]]:
        """Yield each utterance with work(utterance), in order; an utterance whose work raises InputError is skipped.

        Raises:
            InputError: an utterance is bad, and errors are not skipped.
            Stopped: a signal came.
        """
        with self.open_bar(label), contextlib.closing(self.outcomes(work, utterances)) as outcomes:
            for utterance, outcome in outcomes:
                yield utterance, outcome
                self.bar.update(utterance.size)

    def open_bar(self, label: str) -> tqdm:
        """A progress bar over the source. The caller closes it; `outcomes` advances it for skipped utterances."""
        total, unit = self.source.total(), self.source.unit
        self.bar = tqdm(desc=label, total=total, unit=unit, unit_scale=unit == "B", disable=None)
        return self.bar

    def outcomes(self, work: Callable[[Utterance], T], utterances: Iterable[Of]) -> Iterator[tuple[Of, T]]:
        """Like `map`, but the caller opens the bar, and advances it for each utterance that is yielded."""
        self.skipped, self.first = [], None
        results = ordered_map(partial(_attempt, work), in_chunks(utterances), self.num_workers)
        with contextlib.closing(results):
            for chunk, outcomes in results:
                for utterance, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, InputError):
                        self.skip(utterance, outcome)
                        self.bar.update(utterance.size)
                    else:
                        yield utterance, outcome
                self.stop.check()

    def skip(self, utterance: Utterance, error: InputError) -> None:
        """Skip an utterance and list it. Raises InputError where errors are not skipped."""
        if not self.skip_errors:
            raise InputError(f"{error}; --on_error skip skips such utterances") from error
        self.skipped.append(f"{utterance.id}\t{error}")

    def keep_if_same_size(self, utterance: Utterance, mel_dim: int) -> bool:
        """Keep an utterance whose frames have the first one's size, else skip it; returns whether it is kept."""
        location, size = self.first = self.first or (utterance.location, mel_dim)
        if mel_dim != size:
            reason = f"frames of size {mel_dim}, but those of the first, {location}, have size {size}"
            self.skip(utterance, utterance.error(reason))
        return mel_dim == size


def remaining(utterances: Iterable[Of], is_done: Callable[[Utterance], bool], order: list[str]) -> Iterator[Of]:
    """The utterances that are not done; appends to `order` every id not known to be bad."""
    for utterance in utterances:
        if isinstance(utterance, BadUtterance):
            yield utterance
            continue
        order.append(utterance.id)
        if not is_done(utterance):
            yield utterance


def in_chunks(utterances: Iterable[Of]) -> Iterator[list[Of]]:
    """Utterances in lists, each large enough to be a task of a worker."""
    return in_parts(utterances, lambda utterance: utterance.size, CHUNK_BYTES, CHUNK_UTTERANCES)


def _attempt(work: Callable[[Utterance], T], chunk: list[Utterance]) -> list[T | InputError]:
    """The work on each utterance of a chunk; an error stands for its utterance, and the others are done."""
    outcomes: list[T | InputError] = []
    for utterance in chunk:
        try:
            outcomes.append(work(utterance))
        except InputError as error:
            outcomes.append(error)
    return outcomes
