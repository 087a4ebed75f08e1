"""The utterance: what every source gives, and what everything that reads frames takes."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.system.errors import InputError, one_line
from utils.system.reading import raise_unless_of_file


class UtteranceError(InputError):
    """An InputError that names its utterance."""


@dataclass(frozen=True, kw_only=True)
class Utterance(ABC):
    """Where an utterance is, and how its frames are read, in any process.

    A subclass defines `_read`; one whose recordings may be too long to hold, `_read_blocks` and `long_frames` too.

    Attributes:
        id: the utterance id.
        location: the file, or file:line, for errors.
        size: its share of the source's progress: bytes, or 1 where the source counts utterances.
    """

    id: str
    location: str
    size: int = 1

    def load(self) -> np.ndarray:
        """All frames, (frames, mel_dim) float32, all finite. Raises UtteranceError where they cannot be read."""
        with self._naming_utterance():
            return self._read()

    def blocks(self) -> Iterator[np.ndarray]:
        """The frames of `load` in blocks (some frames, mel_dim), so that a long recording is never held whole."""
        with self._naming_utterance():
            yield from self._read_blocks()

    def long_frames(self) -> int | None:
        """The approximate number of frames where they should be read in blocks, else None."""
        return None

    def remark(self) -> str | None:
        """What people should know of an utterance that can be read, such as a file shorter than its header."""
        with self._naming_utterance():
            remark = self._remark()
        return f"{self.location}: {remark}" if remark else None

    def error(self, reason: object, location: str = "") -> UtteranceError:
        """An error about this utterance."""
        place = location or self.location
        what = str(reason).removeprefix(f"{place} ")  # is named once
        return UtteranceError(f"utterance {one_line(self.id, 80)}: {what}", place)

    def rejected(self, reason: object, is_read: bool = False) -> "BadUtterance":
        """What takes this utterance's place if it is bad; with `is_read`, an error of reading it comes first."""
        place = {"id": self.id, "location": self.location, "size": self.size}
        return BadUtterance(**place, reason=str(reason), source=self if is_read else None)

    @abstractmethod
    def _read(self) -> np.ndarray:
        """All frames, (frames, mel_dim) float32."""

    def _read_blocks(self) -> Iterator[np.ndarray]:
        yield self._read()

    def _remark(self) -> str | None:
        return None

    @contextlib.contextmanager
    def _naming_utterance(self) -> Iterator[None]:
        try:
            yield
        except UtteranceError:
            raise
        except InputError as error:
            raise self.error(error.reason, error.location) from error
        except OSError as error:
            raise_unless_of_file(error)
            raise self.error(f"cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, kw_only=True)
class BadUtterance(Utterance):
    """An utterance that cannot be used; `load` raises its source's own error, if there is one, or else the reason."""

    reason: str
    source: Utterance | None = None

    def _read(self) -> np.ndarray:
        if self.source:
            self.source.load()
        raise InputError(self.reason)
