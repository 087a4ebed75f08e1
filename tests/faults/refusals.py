"""What the tests of hostile files share: that a file is refused, and what refusing it may take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limits import MIB, memory_limit, time_limit

from utils.errors import InputError
from utils.kaldi_io import scan_archive

SECONDS = 60  # on a busy machine
SMALL_BYTES = 64 * MIB  # for what is refused at sight


def refused(read: Callable, *arguments: Any, match: str | None = None, limit: int = SMALL_BYTES) -> None:
    """Read, and be refused in one line, in little time and memory."""
    with pytest.raises(InputError, match=match) as refusal, time_limit(SECONDS), memory_limit(limit):
        read(*arguments)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000


def read_archive(path: Path) -> list[np.ndarray]:
    """Every utterance's frames."""
    return [found.load() for found in scan_archive(path)]
