"""One process or many: which one this is, what all of them agree on, and how their gradients are added up.

torchrun starts the processes and tells each, in environment variables, who it is. Without it there is one process, and
everything here does nothing. The ranks talk in two ways: gradients and losses travel by NCCL between GPUs and by gloo
between CPUs; what the processes agree on (a signal, an error) always by gloo, which notices a process that has died.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.openmp import PARENT_PID
from utils.system.device import pick_device
from utils.system.errors import EXIT_SIGNAL_BASE, EXIT_USER_ERROR, InputError, Stopped, one_line
from utils.system.signals import StopRequest, watch_launcher

LAUNCHER_S = 10  # seconds in which torchrun passes on a signal that the processes may have got themselves

# The process group, kept to the end of the process. Otherwise its last owner may be a DistributedDataParallel, which
# ends the group's threads holding the interpreter's lock, while one of them waits for that lock to free a tensor.
_kept: list[dist.ProcessGroup] = []

T = TypeVar("T")


class Ranks:
    """The processes of a training; use as a context.

    What all of them meet (an error on any of them, a signal to any of them) ends all of them after the same step: the
    first tells it, and the others leave with the same exit code. A process that dies ends the others by an error.

    Args:
        device: --device. Each process takes the GPU of its number on its machine.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        device: where this process computes.

    Raises:
        InputError: there is no such device; or the others cannot be reached, or one of them is gone.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = pick_device(device)
        if self.size > 1 and self.device.type == "cuda":
            if self.device.index is not None:
                raise InputError(f"--device {device}: of several processes each takes its own; give cuda")
            self.device = pick_device(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
        self._has_agreed = False  # whether all ranks are on their way out

    def __enter__(self) -> "Ranks":
        if self.size > 1:
            if dist.is_torchelastic_launched():
                watch_launcher(PARENT_PID)
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
            except (RuntimeError, ValueError) as error:
                raise InputError(f"process {self.rank} of {self.size} cannot meet the others ({one_line(error, 150)}); "
                                 "start them by torchrun") from error  # fmt: skip
            _kept.append(dist.group.WORLD)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self.size == 1:
            return
        with self._naming_loss():
            if kind is None or self._has_agreed:
                self._exchange(torch.zeros(1))  # torchrun ends the others once one is gone: leave together
                dist.destroy_process_group()
            elif isinstance(error, RuntimeError):
                raise error

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    @property
    def patience(self) -> float:
        """Seconds in which a second signal is the first one, passed on by torchrun."""
        return LAUNCHER_S if self.size > 1 else 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor on this rank's device, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, is_so: bool) -> bool:
        """Whether something is so on any rank."""
        return is_so if self.size == 1 else bool(self._exchange(torch.tensor(is_so, dtype=torch.int64)))

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def together(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Call a function on every rank. An InputError of any of them is an error of all."""
        result, error = None, None
        try:
            result = function(*arguments)
        except InputError as caught:
            error = caught
        self.agree(error)
        return result

    def in_step(self, items: Iterable[T], stop: StopRequest) -> Iterator[T]:
        """Each item in turn, which all ranks take together, or none: where one meets an error or a signal, all end.

        Raises:
            InputError, Stopped: on the first rank; the others exit.
        """
        items, end = iter(items), object()
        while True:
            item, error = end, None
            try:
                item = next(items, end)
            except InputError as caught:
                error = caught
            self.agree(error, stop)
            if item is end:
                return
            yield item

    def agree(self, error: InputError | None = None, stop: StopRequest | None = None) -> None:
        """Go on, unless any rank has met an error or a signal.

        Raises:
            InputError, Stopped: on the first rank; the others exit.
        """
        signum = (stop.signum if stop else None) or 0
        if self.size > 1:
            failed, signum = self._exchange(torch.tensor([error is not None, signum])).tolist()
            if failed:
                told = [None] * self.size
                dist.all_gather_object(told, None if error is None else str(error))
                raise self.ending(InputError(next(text for text in told if text)))
        if error is not None:
            raise error
        if stop and signum:
            stop.signum = signum
            try:
                stop.check()
            except Stopped as stopped:
                raise self.ending(stopped) from None

    def ending(self, error: InputError | Stopped) -> BaseException:
        """What to raise where all ranks meet the same end: the error on the first, a silent exit on the others."""
        self._has_agreed = True
        if self.is_first:
            return error
        return SystemExit(EXIT_SIGNAL_BASE + error.signum if isinstance(error, Stopped) else EXIT_USER_ERROR)

    def check_alike(self, config: dict[str, Any]) -> None:
        """Raise InputError where a rank was started with other options, or sees other data, than the first."""
        first = self.from_first(config)
        others = [f"{key} is {one_line(config[key], 60)}, and {one_line(first[key], 60)} on the first"
                  for key in config if config[key] != first[key]]  # fmt: skip
        self.agree(InputError(f"process {self.rank} is not like the first: {'; '.join(others)}") if others else None)

    def parallel(self, module: nn.Module, *empty_batch: object) -> nn.Module:
        """A module whose gradients are the mean over ranks once backward is done.

        DistributedDataParallel lays the gradients out anew after its first backward pass, and so adds them up in
        another order. That pass is done here, on an empty batch: a resumed run then adds as an uninterrupted one does.
        """
        if self.size == 1:
            return module
        parallel = DistributedDataParallel(module)
        for _ in range(2):  # it does so at the start of the second
            parallel(*empty_batch).backward()
        parallel.zero_grad(set_to_none=True)
        return parallel

    def _exchange(self, values: torch.Tensor) -> torch.Tensor:
        """The maximum over ranks of a tensor on the CPU."""
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    @contextmanager
    def _naming_loss(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            told = one_line(error, 150)
            raise InputError(f"process {self.rank} of {self.size} has lost another one, which may have said why "
                             f"({told}); continue with the same command and --resume") from error  # fmt: skip
