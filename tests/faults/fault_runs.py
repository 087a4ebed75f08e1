"""What the fault tests share: runs of the scripts that a fault strikes, and what a run left alone makes."""

import atexit
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import make_splits
from training_runs import MEL, curves, weights

from apc_model import APCModel
from utils import RNNConfig
from utils.corpus.prepared import load_tensor
from utils.corpus.sources import ArchiveSource
from utils.training.arguments import MAY_CHANGE

ROOT = Path(__file__).parent.parent.parent
HIDDEN = 8
CHECKPOINT = f"bs4-rhl2-rhs{HIDDEN}-rd0-adam-res-ts1.pt"
HANG_S, POLL_S = 60, 0.005


class Ended(NamedTuple):
    """What came of a run: its exit code (-n where signal n killed it), its two streams, and its moments."""

    code: int
    output: str
    errors: str
    moments: int


class Runs:
    """Starts runs by a process that forks them; see forking.py."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, Path(__file__).parent / "forking.py"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen(command, text=True, env=environment, **pipes)
        atexit.register(self.server.communicate)  # its stdin ends, and so does it

    def _ask(self, **request: Any) -> dict[str, Any]:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(
        self,
        script: str,
        arguments: list[str],
        directory: Path,
        fault: dict | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Start a run in a directory, with more variables in its environment; its process id."""
        request = {"script": script, "arguments": arguments, "directory": str(directory), "fault": fault}
        return self._ask(**request, environment=environment or {})["pid"]

    def wait(self, pid: int) -> Ended:
        """Wait for a run to end."""
        return Ended(**self._ask(wait=pid))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_S)


def alive_in_group(leader: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _parent, group = entry.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


@functools.cache
def runs() -> Runs:
    """The one process that forks runs."""
    return Runs()


class Job(NamedTuple):
    """A command that makes a directory.

    Attributes:
        script: the script's name, without .py.
        options: its options.
        out: the directory that it makes, relative to the working directory.
        content: all that must be the same in two such directories.
    """

    script: str
    options: str
    out: str
    content: Callable[[Path], dict[str, Any]]

    def start(self, directory: Path, fault: dict | None = None) -> int:
        """Start it; its process id."""
        return runs().start(self.script, self.options.split(), directory, fault)

    def run(self, directory: Path, fault: dict | None = None) -> Ended:
        """Run it to its end."""
        return runs().wait(self.start(directory, fault))

    def made(self, directory: Path) -> dict[str, Any]:
        """What it has made."""
        return self.content(directory / self.out)


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the lock."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def experiment(directory: Path) -> dict[str, Any]:
    """What an experiment is for: checkpoints as bytes, configuration, curves as points."""
    config = json.loads((directory / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in MAY_CHANGE}
    return weights(directory) | curves(directory) | {"config": config}


class Close:
    """Features that equal others to float precision."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __eq__(self, other: "Close") -> bool:
        return self.values.shape == other.values.shape and np.allclose(self.values, other.values, atol=1e-6)


def features(directory: Path) -> dict[str, Any]:
    """What an extraction is for: features to float precision, in their order; every other file but the offsets."""
    found = {name: content for name, content in files(directory).items() if not name.startswith("feats.")}
    for name in [name for name in found if name.endswith(".pt")]:
        found[name] = Close(load_tensor(directory / name).numpy())
    if (directory / "feats.scp").exists():
        found["order"] = [line.split()[0] for line in (directory / "feats.scp").read_text().splitlines()]
        found |= {entry.id: Close(entry.load()) for entry in ArchiveSource([directory / "feats.ark"]).utterances()}
    return found


PREPARE = Job(
    "prepare_data",
    "--librispeech_from_kaldi corpus.blogmel --save_dir out --max_seq_len 30 --norm speaker --num_workers 2",
    "out",
    files,
)
PREPARE_ALONE = PREPARE._replace(options=PREPARE.options.replace("--num_workers 2", "--num_workers 0"))
TRAIN = Job(
    "train_apc",
    f"--feature_dim {MEL} --rnn_hidden_size {HIDDEN} --rnn_num_layers 2 --rnn_residual --rnn_dropout 0.3 "
    "--batch_size 4 --epochs 2 --save_every 2 --load_data_workers 0 --learning_rate 1e-2 --librispeech_path . "
    "--train_split train --val_split dev --resume",
    "logs/foo.dir",
    experiment,
)
EXTRACT = Job(
    "load_pretrained_model",
    f"--checkpoint {CHECKPOINT} --data train --save_dir features --batch_size 2 --load_data_workers 0",
    "features",
    features,
)
EXTRACT_ARK = EXTRACT._replace(options=f"{EXTRACT.options} --format ark --layer all --chunk 7")
JOBS = {"prepare": PREPARE, "train": TRAIN, "extract": EXTRACT}
ALL_JOBS = JOBS | {"extract an archive": EXTRACT_ARK}


def write_corpus(path: Path) -> None:
    """A .blogmel of forty utterances of four speakers, of 2 to 50 frames of size 3."""
    rng, text = random.Random(0), ""
    for i in range(40):
        rows = (" ".join(repr(rng.gauss(5, 2)) for _ in range(3)) for _ in range(rng.randint(2, 50)))
        text += f"s{i % 4}-1-{i}\n" + "\n".join(rows) + "\n.\n"
    path.write_text(text)


def make_workplace(directory: Path) -> Path:
    """What the three jobs read: an archive, prepared splits of 18 and 5 utterances, and a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    write_corpus(directory / "corpus.blogmel")
    make_splits(directory)
    torch.manual_seed(0)
    model = APCModel(MEL, None, RNNConfig(MEL, HIDDEN, 2, 0.0, True))
    torch.save(model.state_dict(), directory / CHECKPOINT)
    return directory


class Alone(NamedTuple):
    """What a run left alone makes, and how many moments it has."""

    made: dict[str, Any]
    calls: int
    files: int


@functools.cache
def left_alone(job: Job) -> Alone:
    """Run a job that nothing strikes, in a workplace of its own."""
    counts = {}
    with tempfile.TemporaryDirectory() as workplace:
        for moments in ("calls", "files"):
            directory = make_workplace(Path(workplace) / moments)
            ended = job.run(directory, {"moments": moments, "at": 0, "action": ""})
            assert ended.code == 0, ended.errors
            counts[moments] = ended.moments
        return Alone(job.made(directory), **counts)


def assert_goes_on(job: Job, directory: Path) -> None:
    """The same command, given again, ends well, and in the end nothing tells what struck the runs before."""
    ended = job.run(directory)
    assert ended.code == 0, ended.errors
    assert job.made(directory) == left_alone(job).made
