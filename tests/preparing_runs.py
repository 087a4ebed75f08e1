"""Runs of prepare_data.py: in the process of the tests, or in one that dies."""

import subprocess
import sys
from pathlib import Path

import prepare_data

ROOT = Path(__file__).parent.parent
OWNERS = {  # where a method is from, and whose it is
    "record": ("utils.corpus.output_directory", "OutputDirectory"),
    "keep_if_same_size": ("utils.corpus.passes", "Pass"),
    "save": ("utils.corpus.normalization", "Normalizer"),
    "log_mel": ("utils.audio", "log_mel"),
}
DIE = """
import os, signal, sys
import prepare_data
from utils.system.errors import run_script
from {module} import {owner}
whole, calls = {owner}.{method}, 0
def dying(*args, **options):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.{signal})
    return whole(*args, **options)
{owner}.{method} = dying
run_script(prepare_data.main)
"""


def prepare(sources, save_dir, *options, workers=0, option="--librispeech_from_kaldi"):
    """Prepare an archive or several; returns save_dir."""
    sources = sources if isinstance(sources, list) else [sources]
    arguments = [option, *sources, "--save_dir", save_dir, "--num_workers", workers, *options]
    prepare_data.main([*map(str, arguments)])
    return save_dir


def prepare_audio(directory, save_dir, *options, workers=0):
    """Prepare a directory of audio; returns save_dir."""
    return prepare(directory, save_dir, *options, workers=workers, option="--librispeech_audio")


def run_to_death(arguments, at, method, signal_name):
    """Run the script in a process that sends itself a signal at a call of a method. Ends when its workers have, too."""
    module, owner = OWNERS[method]
    code = DIE.format(module=module, owner=owner, method=method, at=at, signal=signal_name)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def content(directory):
    """What a directory holds, but for the lock."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}
