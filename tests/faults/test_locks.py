"""Facts about two runs in one directory at the same time: the second is refused, and the first is unharmed."""

import errno

import pytest
from fault_runs import JOBS, TRAIN, Ended, left_alone, make_workplace, runs, until

from utils.system.files import lock_directory


def assert_refused(ended: Ended, job):
    """In use is one line and exit code 2."""
    assert ended.code == 2 and ended.errors.count("\n") == 1, ended.errors
    assert ended.errors.startswith(f"{job.script}.py: error: {job.out} is in use by another ")
    assert "wait for it to end" in ended.errors


def pause(job, directory, share, alone):
    """Start a job that pauses after a share of its operations on files; its process id, and the file that frees it."""
    go = directory / f"go at {share}"
    at = max(1, int(share * alone.files))
    pid = job.start(directory, {"moments": "files", "at": at, "action": f"pause {go}"})
    until(go.with_name(f"{go.name}.reached").exists)
    return pid, go


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize("name", JOBS)
def test_a_second_run_is_refused_and_the_first_is_unharmed(name, share, tmp_path):
    job, alone = JOBS[name], left_alone(JOBS[name])
    make_workplace(tmp_path)
    first, go = pause(job, tmp_path, share, alone)
    try:
        for options in (job.options, f"{job.options.replace('--resume', '')} --overwrite"):
            assert_refused(job._replace(options=options).run(tmp_path), job)
    finally:
        go.touch()
        ended = runs().wait(first)
    assert ended.code == 0, ended.errors
    assert job.made(tmp_path) == alone.made


def test_experiments_of_other_names_do_not_wait_for_each_other(tmp_path):
    alone = left_alone(TRAIN)
    make_workplace(tmp_path)
    first, go = pause(TRAIN, tmp_path, 0.5, alone)
    try:
        other = TRAIN._replace(options=f"{TRAIN.options} --experiment_name bar")
        assert other.run(tmp_path).code == 0
    finally:
        go.touch()
        assert runs().wait(first).code == 0
    assert TRAIN.made(tmp_path) == alone.made


def test_where_a_file_system_has_no_locks_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("utils.system.files.fcntl.lockf", refuse)
    with lock_directory(tmp_path / "out", "another run"):
        (tmp_path / "out" / "a").touch()
    assert "this file system has no locks" in capsys.readouterr().err
