"""Memory that large tensors free, kept for the next ones."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def reuse_freed_memory() -> None:
    """Let the C library keep the memory that tensors free for the next ones; does nothing where there is no glibc.

    By default glibc maps every large tensor anew, and the kernel clears it page by page: at 1600 frames a third of
    the time of a training step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
