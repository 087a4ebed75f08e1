"""Train under torchrun for long, with signals to the launcher and its processes at random moments.

    python tests/faults/soak.py --minutes 30

Each training is struck and resumed a few times, then left to end, and must have the same checkpoints as one that
nothing disturbed. Prints a table of what was seen; exits with 1 after a hang, an abort, an end with the wrong exit code
or without a word, or weights that differ.
"""

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/faults")]

from conftest import make_splits  # noqa: E402
from training_runs import MEL, weights  # noqa: E402

OPTIONS = (
    f"--feature_dim {MEL} --rnn_hidden_size 8 --rnn_num_layers 2 --rnn_dropout 0.3 --batch_size 4 --save_every 7 "
    "--learning_rate 1e-3 --librispeech_path . --train_split train --val_split dev --resume"
)
STRIKES = list(itertools.product(("launcher", "rank"), (signal.SIGTERM, signal.SIGKILL)))
ABORTS = ("terminate called", "Fatal Python error", "SIGABRT", "SIGSEGV")
HANG_S, END_S, POLL_S = 90, 15, 0.1  # without a line of the log; to end in after a strike
OUR_TRACEBACK = re.compile(r'File ".*train_apc\.py", line')
ENDS = re.compile(r"stopped by SIGTERM; .*--resume|has lost another one.*--resume|done: \d+ steps")
GOOD = ("trainings", "struck", "equal weights")


def processes_in(directory: Path) -> dict[int, int]:
    """The processes alive that work in a directory, each with its parent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if (entry / "cwd").readlink() == directory and state not in "ZX":
                found[int(entry.name)] = int(parent)
    return found


class Training:
    """A training that is run again and again until it is done."""

    def __init__(self, directory: Path, processes: int, workers: int, epochs: int, seen: Counter) -> None:
        self.directory, self.seen = make_splits(directory).resolve(), seen
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        options = f"{OPTIONS} --load_data_workers {workers} --epochs {epochs}"
        self.command = [*torchrun, ROOT / "train_apc.py", *options.split()]

    def run(self, strike: tuple[str, signal.Signals] | None = None, after: float = 0) -> bool:
        """Run it, strike it after so many seconds of training; whether it came to its end."""
        log, last_size = self.directory / "logs/foo.dir/foo.log", -1
        before = log.stat().st_size if log.exists() else 0
        begun, changed, ended = None, time.monotonic(), None
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.directory / "output").open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            launcher = subprocess.Popen(self.command, cwd=self.directory, env=environment, **streams)
        while launcher.poll() is None or processes_in(self.directory):
            now, size = time.monotonic(), log.stat().st_size if log.exists() else 0
            if size != last_size:
                last_size, changed = size, now
            begun = begun or (now if size > before else None)
            if strike and ended is None and begun and now > begun + after:
                self._strike(launcher.pid, *strike)
                ended = now
            if now > changed + HANG_S or (ended and now > ended + END_S):
                self._give_up(launcher)
            time.sleep(POLL_S)
        text = (self.directory / "output").read_text()
        self.seen["aborts"] += any(word in text for word in ABORTS)
        if not self._is_right_end(launcher.returncode, text, strike if ended else None):
            self.seen["errors"] += 1
            print(f"{strike}: exit code {launcher.returncode}\n{text[-3000:]}", file=sys.stderr)
        return launcher.returncode == 0

    @staticmethod
    def _is_right_end(code: int, text: str, strike: tuple[str, signal.Signals] | None) -> bool:
        """Whether a run ended with the exit code and the words of its strike, or as if it came after the end."""
        if OUR_TRACEBACK.search(text):
            return False
        if strike is None or code == 0:
            return code == 0 and "done: " in text
        expected = -signal.SIGKILL if strike == ("launcher", signal.SIGKILL) else 1
        return code == expected and ENDS.search(text) is not None

    def _strike(self, launcher: int, target: str, signum: signal.Signals) -> None:
        ranks = [pid for pid, parent in processes_in(self.directory).items() if parent == launcher]
        targets = ranks if target == "rank" else [launcher]
        self.seen["struck"] += 1
        with contextlib.suppress(ProcessLookupError, IndexError):  # it has just ended
            os.kill(random.choice(targets), signum)

    def _give_up(self, launcher: subprocess.Popen) -> None:
        self.seen["hangs"] += 1
        print(f"hangs: {processes_in(self.directory)}", file=sys.stderr)
        for pid in processes_in(self.directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()

    def made(self) -> dict[str, bytes]:
        """Its checkpoints; the next run starts over."""
        made = weights(self.directory / "logs/foo.dir")
        shutil.rmtree(self.directory / "logs")
        return made


def soak(workplace: Path, settings: list[tuple[int, int]], seconds: float, epochs: int, strikes: int) -> list[Counter]:
    """Trainings of each setting, (processes, workers), in turn until the time is over; what was seen of each."""
    deadline, seen, expected = time.monotonic() + seconds, {setting: Counter() for setting in settings}, {}
    for setting in itertools.cycle(settings):
        processes, workers = setting
        if processes not in expected:
            undisturbed = Training(workplace / f"{processes} undisturbed", processes, workers, epochs, seen[setting])
            undisturbed.run()
            expected[processes] = undisturbed.made()
        directory = workplace / f"{processes} {workers} {seen[setting]['trainings']}"
        training = Training(directory, *setting, epochs, seen[setting])
        for strike in random.sample(STRIKES, strikes):
            training.run(strike, random.uniform(0, 5))
        is_done = training.run()
        seen[setting]["trainings"] += 1
        seen[setting]["equal weights" if is_done and training.made() == expected[processes] else "other weights"] += 1
        if time.monotonic() > deadline and setting == settings[-1]:
            return list(seen.values())
    raise AssertionError("no settings")


def main() -> None:
    """Soak, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--strikes", type=int, default=4, choices=range(len(STRIKES) + 1))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    settings = list(itertools.product(args.processes, args.workers))
    with tempfile.TemporaryDirectory() as workplace:
        seen = soak(Path(workplace), settings, 60 * args.minutes, args.epochs, args.strikes)
    columns = [*GOOD, "other weights", "hangs", "aborts", "errors"]
    print(f"{'processes':>9} {'workers':>7} " + " ".join(f"{name:>13}" for name in columns))
    for (processes, workers), counts in zip(settings, seen, strict=True):
        print(f"{processes:9} {workers:7} " + " ".join(f"{counts[name]:13}" for name in columns))
    sys.exit(any(counts[name] for counts in seen for name in columns[len(GOOD) :]))


if __name__ == "__main__":
    main()
