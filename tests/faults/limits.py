"""What reading a file may take at most: memory and time, measured."""

import contextlib
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
SAFETY_BYTES = 6 << 30  # of address space: what would take more fails, before the machine does
MIB = 1 << 20


def memory(field: str) -> int:
    """A field of this process's status in bytes: VmRSS memory now, VmHWM its peak, VmSize its address space."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) << 10


@contextlib.contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Fail where the block takes more memory than this at any time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + SAFETY_BYTES, hard))
    RESET.write_text(RESET_PEAK)
    before = memory("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = memory("VmHWM") - before
    assert taken <= num_bytes, f"took {taken / MIB:.0f} MiB, more than {num_bytes / MIB:.0f}"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer: it hangs."""

    def fail(*_: object) -> None:
        raise AssertionError(f"hangs: more than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
