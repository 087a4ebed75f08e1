"""The same work on many things in several processes: results in order, memory flat, no process left behind."""

import concurrent.futures
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from utils.system.errors import InputError
from utils.system.signals import start_worker

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_IN_FLIGHT_PER_WORKER = 3
FEWER_AT_ONCE = "run the same command again to continue, with a lower OMP_NUM_THREADS for fewer at once"


def ordered_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, function(job)) in the order of the jobs, with a few jobs a worker under way at any time.

    Close the generator (contextlib.closing) to stop the workers early. Where drawing the next job raises, the jobs
    drawn before it are finished first, so that what comes out does not depend on the number of workers.

    Args:
        function: can be pickled, as can its jobs and results.
        jobs: drawn as they are needed.
        num_workers: number of processes; 0 works in this one. InputError is raised if one of them is killed.
    """
    if num_workers == 0:
        for job in jobs:
            yield job, function(job)
        return
    # A forked worker starts at once; one that imports PyTorch anew takes seconds. Only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker)
    try:
        yield from _in_order(executor, function, jobs, num_workers * JOBS_IN_FLIGHT_PER_WORKER)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; "
            "run the same command again to continue, with fewer of them (--num_workers, --load_data_workers)"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def call_all(calls: Sequence[Callable[[], Result]], at_once: int) -> list[Result]:
    """Call functions, several at once in forked processes of one thread each; return what they return, in order.

    The processes inherit the functions and what these hold, which need not be pickled. They end with this process.

    Args:
        calls: the functions.
        at_once: number of processes; 1 works in this one, as does a system that cannot fork.

    Raises:
        InputError: a process was killed.
    """
    if not calls or at_once == 1 or not can_fork():
        return [call() for call in calls]
    context = multiprocessing.get_context("fork")
    others = multiprocessing.active_children()
    settings = min(at_once, len(calls)), context, _start_caller, (calls,)
    with concurrent.futures.ProcessPoolExecutor(*settings) as executor:
        try:
            return list(executor.map(_call, range(len(calls))))
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - set(others):
                worker.kill()
            if isinstance(error, BrokenProcessPool):
                raise InputError(f"a process was killed, perhaps for want of memory; {FEWER_AT_ONCE}") from error
            raise


def can_fork() -> bool:
    """Whether forked processes can compute gradients: on Linux, and not where autograd has threads for a GPU."""
    return sys.platform == "linux" and not torch.cuda.is_available()


def in_parts(
    items: Iterable[Job], size: Callable[[Job], int], enough: int, most: int | None = None
) -> Iterator[list[Job]]:
    """Items in lists, each ended as soon as the sum of their sizes is enough, or it has the most items."""
    part: list[Job] = []
    total = 0
    for item in items:
        part.append(item)
        total += size(item)
        if total >= enough or len(part) == most:
            yield part
            part, total = [], 0
    if part:
        yield part


def _in_order(
    executor: concurrent.futures.Executor, function: Callable[[Job], Result], jobs: Iterable[Job], window: int
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) with at most `window` jobs under way."""
    under_way: deque[tuple[Job, concurrent.futures.Future]] = deque()
    jobs, failure = iter(jobs), None
    while under_way or failure is None:
        try:
            while failure is None and len(under_way) < window:
                job = next(jobs)
                under_way.append((job, executor.submit(function, job)))
        except BaseException as error:  # StopIteration among them
            failure = error
        if under_way:
            job, future = under_way.popleft()
            yield job, future.result()
    if not isinstance(failure, StopIteration):
        raise failure


def _start_worker() -> None:
    start_worker()
    torch.set_num_threads(1)


_calls: Sequence[Callable[[], Any]] = ()  # of a worker of `call_all`


def _start_caller(calls: Sequence[Callable[[], Any]]) -> None:
    global _calls
    _start_worker()
    _calls = calls


def _call(number: int) -> Any:
    return _calls[number]()
