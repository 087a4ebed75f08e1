"""Facts about runs that are killed: the same command goes on, and in the end nothing tells that they were."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import ALL_JOBS, JOBS, Ended, alive_in_group, assert_goes_on, left_alone, make_workplace, runs, until

KILLS = 20  # of each script
MANY = 200  # runs in which they must have come: a run may end before its fault's moment

# Loader processes: in some runs, so that a kill also meets those.
WITH_WORKERS = {
    name: job.options.replace("--load_data_workers 0", "--load_data_workers 1") for name, job in ALL_JOBS.items()
}


def random_fault(rng, alone, action):
    """A fault at a random moment of a run: any call, or one next to an operation on files."""
    moments = rng.choice(["calls", "files"])
    return {"moments": moments, "at": rng.randint(1, getattr(alone, moments)), "action": action}


def is_whole(directory):
    """Whether a directory holds no half-written file of a process that had the time to tidy up."""
    return not list(directory.rglob(".writing-*"))


def said(ended: Ended, script):
    """The lines that a script itself ended with."""
    assert "Traceback" not in ended.errors, ended.errors
    return [line for line in ended.errors.splitlines() if line.startswith(f"{script}.py: ")]


def strike(job, name, directory, seed, action, times):
    """Run a job again and again until faults have struck it so many times; yields what came of those."""
    alone, rng, struck = left_alone(job), random.Random(seed), 0
    for _ in range(MANY):
        options = WITH_WORKERS[name] if rng.random() < 0.2 else job.options
        ended = job._replace(options=options).run(directory, random_fault(rng, alone, action))
        if ended.code != 0:
            struck += 1
            yield ended
        if struck == times:
            return
        if ended.code == 0:
            assert job.made(directory) == alone.made
            shutil.rmtree(directory / job.out)
    raise AssertionError(f"only {struck} of {times} faults struck")


@pytest.mark.parametrize("name", ALL_JOBS)
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(name, tmp_path):
    job = ALL_JOBS[name]
    make_workplace(tmp_path)
    for ended in strike(job, name, tmp_path, 1, "kill", KILLS):
        assert ended.code == -signal.SIGKILL, ended.errors
    assert_goes_on(job, tmp_path)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("name", JOBS)
def test_stopped_by_sigterm_at_random_moments_it_says_so_in_one_line_and_ends_with_the_same_bytes(name, tmp_path):
    job = JOBS[name]
    make_workplace(tmp_path)
    for ended in strike(job, name, tmp_path, 2, f"signal {signal.SIGTERM:d}", 5):
        if ended.code == -signal.SIGTERM:  # before there was anything to save, or after all was
            assert not said(ended, job.script)
        else:
            (line,) = said(ended, job.script)
            assert ended.code == 128 + signal.SIGTERM and "stopped by SIGTERM; " in line
            assert ("--resume" if name == "train" else "run the same command again to continue") in line
        assert is_whole(tmp_path / job.out)
    assert_goes_on(job, tmp_path)


@pytest.mark.parametrize("name", JOBS)
def test_sigint_ends_with_130_and_one_line(name, tmp_path):
    job, alone = JOBS[name], left_alone(JOBS[name])
    make_workplace(tmp_path)
    for at in (1, alone.files // 2):
        ended = job.run(tmp_path, {"moments": "files", "at": at, "action": f"signal {signal.SIGINT:d}"})
        assert ended.code == 130 and len(said(ended, job.script)) == 1
    assert_goes_on(job, tmp_path)


@pytest.mark.parametrize("name", JOBS)
def test_a_second_signal_stops_at_once_and_loses_nothing_that_was_saved(name, tmp_path):
    job, alone = JOBS[name], left_alone(JOBS[name])
    make_workplace(tmp_path)
    both = f"signal {signal.SIGINT:d},{signal.SIGTERM:d}"
    pid = job.start(tmp_path, {"moments": "files", "at": alone.files // 2, "action": both})
    ended = runs().wait(pid)
    assert ended.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert not said(ended, job.script)  # not a word: it saved nothing and waited for nothing
    until(lambda: not alive_in_group(pid))  # workers, which end when they see it
    assert_goes_on(job, tmp_path)


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_run_leaves_no_process_behind(name, tmp_path):
    job, alone = JOBS[name], left_alone(JOBS[name])
    make_workplace(tmp_path)
    job = job._replace(options=job.options.replace("--load_data_workers 0", "--load_data_workers 2"))
    had_workers = False
    for share in (0.3, 0.5, 0.7):
        go = tmp_path / f"go at {share}"
        pid = job.start(tmp_path, {"moments": "calls", "at": int(share * alone.calls), "action": f"pause {go}"})
        until(go.with_name(f"{go.name}.reached").exists)
        had_workers |= len(alive_in_group(pid)) > 1
        os.kill(pid, signal.SIGKILL)
        assert runs().wait(pid).code == -signal.SIGKILL
        until(lambda pid=pid: not alive_in_group(pid))
        if had_workers:
            return
        shutil.rmtree(tmp_path / job.out, ignore_errors=True)  # where it was already made
    raise AssertionError("no worker was ever there")


ORPHAN = """
import os, signal, sys
import datasets
from utils.corpus import batch_reader
from utils.system.signals import start_worker

parent = os.getpid()

def start_late(worker):
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        pass
    start_worker()

batch_reader.start_worker = start_late
dataset = datasets.LibriSpeech(sys.argv[1])
with datasets.BatchReader(1) as reader:
    next(reader.batches(dataset, [[0]]))
"""


def test_a_worker_whose_parent_dies_while_it_starts_ends_as_well(prepared):
    command = [sys.executable, "-c", ORPHAN, str(prepared)]
    root = Path(__file__).parent.parent.parent
    ended = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, timeout=60)  # returns when the last one ends
    assert ended.returncode == -signal.SIGKILL
