"""A process that has imported the scripts, and forks runs of them with a fault armed: a start costs milliseconds.

Reads one request per line on stdin, {"script", "arguments", "directory", "fault", "environment"} or {"wait": pid}, and
answers each in a line on stdout: {"pid"}, or {"code", "output", "errors", "moments"}.

A moment of a run is a call of any function, Python's or C's ("calls"), or what comes before and after an operation on
files ("files"). A fault is {"moments": which, "at": n, "action": what is done at the n-th moment}.
"""

import gc
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.system.errors import run_script
from utils.training import figures

NAMES = ("prepare_data", "train_apc", "load_pretrained_model")
FILE_OPERATIONS = frozenset(
    ("open", "write", "flush", "fsync", "fchmod", "truncate", "replace", "rename", "unlink", "mkdir", "close", "dump")
)
HANG_S, POLL_S = 60, 0.002
HANGS = "hangs"  # the exit code of a run that had to be killed


class Run(NamedTuple):
    """A forked run: the ends to read of its stdout and stderr, and the memory that it counts its moments in."""

    output: int
    errors: int
    count: mmap.mmap


def act(action: str) -> None:
    """Do to this process what an action names."""
    name, _, argument = action.partition(" ")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "signal":  # to every process of the run, as a terminal or a scheduler sends it
        for signum in argument.split(","):
            os.killpg(os.getpid(), int(signum))
    elif name == "full":  # no file grows beyond the argument from here on
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(argument), resource.RLIM_INFINITY))
    elif name == "pause":
        Path(f"{argument}.reached").touch()
        while not Path(argument).exists():
            time.sleep(POLL_S)


def arm(fault: dict, shared: mmap.mmap) -> None:
    """Count the moments of this process, and do the fault's action at its moment."""
    every, at, action = fault["moments"] == "calls", fault["at"], fault["action"]
    count = 0

    def watch(_frame: object, event: str, function: object) -> None:
        nonlocal count
        if every:
            if event not in ("call", "c_call"):
                return
        elif event not in ("c_call", "c_return") or function.__name__ not in FILE_OPERATIONS:
            return
        count += 1
        shared[:8] = count.to_bytes(8, "little")
        if count == at:
            act(action)

    # A run's workers are not counted, not even in their first moments.
    os.register_at_fork(before=lambda: sys.setprofile(None), after_in_parent=lambda: sys.setprofile(watch))
    sys.setprofile(watch)


def become(request: dict, output: int, errors: int, shared: mmap.mmap) -> None:
    """Turn this process, just forked, into a run of a script. Does not return."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.chdir(request["directory"])
    os.environ.update(request["environment"])
    sys.argv = [f"{request['script']}.py", *request["arguments"]]
    main = importlib.import_module(request["script"]).main
    figures.PICTURES, figures._add_figure = 0, lambda *_: None  # most moments would be matplotlib's
    if request["fault"]:
        arm(request["fault"], shared)
    run_script(main)


def start(request: dict) -> tuple[int, Run]:
    """Fork a run."""
    (output, output_in), (errors, errors_in), shared = os.pipe(), os.pipe(), mmap.mmap(-1, 8)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run in the background inherits it ignored
        become(request, output_in, errors_in, shared)
    for end in (output_in, errors_in):
        os.close(end)
    for end in (output, errors):
        os.set_blocking(end, False)
    return pid, Run(output, errors, shared)


def read_available(end: int) -> str:
    """What is in a pipe; workers that a killed run left may hold its other end."""
    parts = []
    try:
        while part := os.read(end, 1 << 16):
            parts.append(part)
    except BlockingIOError:
        pass
    os.close(end)
    return b"".join(parts).decode()


def wait(pid: int, run: Run) -> dict:
    """What came of a run, when it has ended."""
    deadline, code = time.monotonic() + HANG_S, None
    while code is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = HANGS
        else:
            time.sleep(POLL_S)
    moments = int.from_bytes(run.count[:8], "little")
    output, errors = read_available(run.output), read_available(run.errors)
    return {"code": code, "output": output, "errors": errors, "moments": moments}


def warm_up() -> None:
    """Import all that a run would: what an optimizer imports at its first step takes a second."""
    for name in NAMES:
        importlib.import_module(name)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()  # without a backward pass, after which PyTorch does not let processes fork


def serve() -> None:
    """Answer requests until stdin ends."""
    warm_up()
    gc.freeze()  # what is imported is never looked through again, in no run, which would also copy all its memory
    running: dict[int, Run] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], running.pop(request["wait"]))
        else:
            pid, running[pid] = start(request)
            answer = {"pid": pid}
        os.write(1, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    serve()
