"""What the tests of hostile files share: that a file is refused, and what refusing it may take."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limits import MIB, memory_limit, time_limit

from utils.corpus.sources import ArchiveSource
from utils.system.errors import InputError

SECONDS = 60  # on a busy machine
SMALL_BYTES = 64 * MIB  # for what is refused at sight


class RunsCode:
    """Pickles to a call of os.system."""

    def __init__(self, proof: Path) -> None:
        self.command = f"touch '{proof}'"

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (self.command,)


def refused(read: Callable, *arguments: Any, match: str | None = None, limit: int = SMALL_BYTES) -> None:
    """Read, and be refused in one line, in little time and memory."""
    with pytest.raises(InputError, match=match) as refusal, time_limit(SECONDS), memory_limit(limit):
        read(*arguments)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000


def read_archive(path: Path) -> list[np.ndarray]:
    """Every utterance's frames."""
    return [found.load() for found in ArchiveSource([path]).utterances()]
