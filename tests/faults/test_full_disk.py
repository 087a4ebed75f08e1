"""Facts about disks that fill: one line, what was there stays, and the same command goes on once there is room."""

import contextlib
import random
import re
import shutil
import subprocess

import pytest
from fault_runs import ALL_JOBS, JOBS, PREPARE, PREPARE_ALONE, TRAIN, assert_goes_on, files, left_alone, make_workplace

from utils.system.untrusted import load_untrusted

FULL = "full 0"  # no file grows any more, whichever it is


def assert_one_line(ended, script):
    """A full disk is one line and exit code 2; the lines of the log and the progress bar aside."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.errors and "Exception" not in ended.errors, ended.errors
    (line,) = (line for line in ended.errors.splitlines() if line.startswith(f"{script}.py: "))
    assert ended.errors.endswith(f"{line}\n")
    assert re.search(r"(File too large|No space left on device): \S", line), line  # and names the file


def assert_whole(directory):
    """Nothing half written: no temporary file, and everything that readers read can be read."""
    assert not list(directory.rglob(".writing-*"))
    for path in directory.rglob("*"):
        if path.suffix in (".pt", ".model", ".state"):
            load_untrusted(path)


def assert_kept(before, after):
    """Files that were whole before are there unchanged; logs, curves and notes of progress may have grown."""
    for path, content in before.items():
        if path.endswith((".pt", ".model", ".json", ".pkl")):
            assert after.get(path) == content, path


def in_one_process(job):
    """A job that starts no workers: that needs files of the system's, which may not grow on a full disk either."""
    return PREPARE_ALONE if job is PREPARE else job


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ALL_JOBS)
def test_a_disk_that_fills_at_any_moment_is_one_line_and_the_run_goes_on_when_there_is_room(name, seed, tmp_path):
    job = in_one_process(ALL_JOBS[name])
    make_workplace(tmp_path)
    rng = random.Random(seed)
    earliest = latest = 0.0
    for _ in range(2):  # early and late in the run
        earliest, latest = latest, latest + 0.45
        at = int(rng.uniform(earliest, latest) * left_alone(job).files) + 1
        before = files(tmp_path)
        ended = job.run(tmp_path, {"moments": "files", "at": at, "action": FULL})
        assert_kept(before, files(tmp_path))
        assert_whole(tmp_path)
        if ended.code != 0:  # it may have written all before
            assert_one_line(ended, job.script)
    assert_goes_on(job, tmp_path)


@pytest.mark.parametrize("limit", [50, 500, 1500, 5000, 15000])
@pytest.mark.parametrize("name", JOBS)
def test_a_file_that_does_not_fit_is_one_line_whichever_file_it_is(name, limit, tmp_path):
    """Files of one kind after another are too large: configuration, tensors, notes, weights, curves, states."""
    job = in_one_process(JOBS[name])
    make_workplace(tmp_path)
    ended = job.run(tmp_path, {"moments": "calls", "at": 1, "action": f"full {limit}"})
    assert_whole(tmp_path)
    if ended.code != 0:
        assert_one_line(ended, job.script)
    assert ended.code != 0 or limit > 1500
    assert_goes_on(job, tmp_path)


@contextlib.contextmanager
def small_file_system(directory, num_bytes):
    """A file system of so many bytes, where this process may mount one. Yields whether it could."""
    directory.mkdir()
    mounted = False
    with contextlib.suppress(FileNotFoundError):
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(directory)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("name", JOBS)
def test_a_small_disk_is_one_line_and_room_on_it_lets_the_run_go_on(name, tmp_path):
    job, place = JOBS[name], tmp_path / "disk"
    with small_file_system(place, 4_000_000) as is_small:
        make_workplace(place)
        filler = place / "filler"
        if is_small:
            free = shutil.disk_usage(place).free
            filler.write_bytes(bytes(free - 40_000))
        fault = {"moments": "files", "at": left_alone(job).files // 2, "action": FULL}
        ended = job.run(place, None if is_small else fault)
        assert_one_line(ended, job.script)
        assert_whole(place)
        filler.unlink(missing_ok=True)
        assert_goes_on(job, place)


def test_an_experiment_that_is_done_is_not_harmed_by_a_full_disk(tmp_path):
    make_workplace(tmp_path)
    assert TRAIN.run(tmp_path).code == 0
    longer = TRAIN._replace(options=TRAIN.options.replace("--epochs 2", "--epochs 3"))
    assert_one_line(longer.run(tmp_path, {"moments": "calls", "at": 1, "action": FULL}), TRAIN.script)
    assert_goes_on(TRAIN, tmp_path)
