"""Training in one process or several, which torchrun starts and numbers by environment variables.

Gradients and losses are summed by NCCL between GPUs and by gloo between CPUs. Signals and errors are exchanged by gloo
always, which notices a process that has died. In a single process nothing is exchanged.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.openmp import PARENT_PID
from utils.system.device import pick_device
from utils.system.errors import EXIT_SIGNAL_BASE, EXIT_USER_ERROR, InputError, Stopped, describe_changes, one_line
from utils.system.signals import StopRequest, watch_launcher
from utils.training.objective import Objective

LAUNCHER_SECONDS = 10  # in which torchrun passes on a signal that the processes may have received themselves

# The process group, kept to the end of the process. Otherwise its last owner may be a DistributedDataParallel, which
# joins the group's threads while it holds the interpreter's lock, which one of them may need to free a tensor.
_kept: list[dist.ProcessGroup] = []

T = TypeVar("T")


class Ranks:
    """The processes of a training; use in a `with` statement.

    An error or a signal in any of them ends all of them after the same step: the first reports it, and the others exit
    with the same code. A process that dies ends the others by an error.

    Args:
        device: --device. Each process takes the GPU of its local rank.

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
        self._all_exit = False  # whether all ranks are about to exit

    def __enter__(self) -> "Ranks":
        if self.device.index is not None:  # of a GPU
            torch.cuda.set_device(self.device)
        if self.size > 1:
            if dist.is_torchelastic_launched():
                watch_launcher(PARENT_PID)
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
            except (RuntimeError, ValueError) as error:
                message = f"process {self.rank} of {self.size} cannot meet the others ({one_line(error, 150)})"
                raise InputError(f"{message}; start them by torchrun") from error
            _kept.append(dist.group.WORLD)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self.size == 1:
            return
        try:
            if kind is None or self._all_exit:
                self._maximum(torch.zeros(1))  # torchrun ends the others once one is gone: leave together
                dist.destroy_process_group()
            elif isinstance(error, RuntimeError):
                raise error
        except RuntimeError as lost:
            if not (isinstance(lost, dist.DistError) or "gloo" in str(lost)):
                raise
            message = f"process {self.rank} of {self.size} has lost another one, which may have said why"
            advice = "continue with the same command and --resume"
            raise InputError(f"{message} ({one_line(lost, 400)}); {advice}") from lost

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    @property
    def patience(self) -> float:
        """Seconds in which a second signal counts as the first: torchrun passes signals on."""
        return LAUNCHER_SECONDS if self.size > 1 else 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor on this rank's device, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, is_so: bool) -> bool:
        """Whether something is so on any rank."""
        return is_so if self.size == 1 else bool(self._maximum(torch.tensor(is_so, dtype=torch.int64)))

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def run_on_all(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Call a function on every rank. An InputError on any of them is raised on all."""
        result, error = None, None
        try:
            result = function(*arguments)
        except InputError as caught:
            error = caught
        self.raise_if_any_failed(error)
        return result

    def synchronized(self, items: Iterable[T], stop: StopRequest) -> Iterator[T]:
        """Yield items that all ranks take at the same time, until an error or a signal on any of them ends all.

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
            self.raise_if_any_failed(error, stop)
            if item is end:
                return
            yield item

    def raise_if_any_failed(self, error: InputError | None = None, stop: StopRequest | None = None) -> None:
        """End all ranks if any of them has met an error or a signal.

        Raises:
            InputError, Stopped: on the first rank; the others exit.
        """
        signum = (stop.signum if stop else None) or 0
        if self.size > 1:
            failed, signum = self._maximum(torch.tensor([error is not None, signum])).tolist()
            if failed:
                messages = [None] * self.size
                dist.all_gather_object(messages, None if error is None else str(error))
                raise self.exit_together(InputError(next(message for message in messages if message)))
        if error is not None:
            raise error
        if stop and signum:
            stop.signum = signum
            try:
                stop.check()
            except Stopped as stopped:
                raise self.exit_together(stopped) from None

    def exit_together(self, error: InputError | Stopped) -> BaseException:
        """What to raise where all ranks end for the same reason: the error on the first, an exit on others."""
        self._all_exit = True
        if self.is_first:
            return error
        return SystemExit(EXIT_SIGNAL_BASE + error.signum if isinstance(error, Stopped) else EXIT_USER_ERROR)

    def check_same_config(self, config: dict[str, Any]) -> None:
        """Raise InputError where a rank has other options or data than the first."""
        template = "{key} is {after}, and {before} on the first"
        changes = describe_changes(self.from_first(config), config, template=template)
        self.raise_if_any_failed(InputError(f"process {self.rank} differs: {changes}") if changes else None)

    def parallel(self, objective: Objective) -> nn.Module:
        """The objective, its gradients being the mean over ranks once backward is done.

        DistributedDataParallel rebuilds its buckets of gradients after its first backward pass, and then sums in
        another order. That pass is done here, on an empty batch, so that a resumed run sums as an uninterrupted one.
        """
        if self.size == 1:
            return objective
        parallel = DistributedDataParallel(objective)
        for _ in range(2):  # they are rebuilt at the start of the second
            parallel(*objective.empty_batch()).backward()
        parallel.zero_grad(set_to_none=True)
        return parallel

    def _maximum(self, values: torch.Tensor) -> torch.Tensor:
        """The maximum over ranks of a tensor on the CPU."""
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values
