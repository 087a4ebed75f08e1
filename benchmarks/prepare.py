"""Speed and memory of prepare_data.py, beside a plain loop of float() over lines, a copy of its output, and real time.

    python benchmarks/prepare.py --megabytes 100 --num_workers 2

Text: this project, a plain pipeline (float() on each token, pad, torch.save, one process), and the reading and parsing
of both alone, with nothing written.
Archives: the same frames in a binary .ark, and a mere copy of the tensors, each flushed to the disk, which is as fast
as any input could be. Audio: FLAC files of 10 seconds, both passes. Memory: the peak of all processes together,
for ten times as many utterances.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from common import MEL_DIM, memory_mb, seconds_of

from utils.audio.frames import SAMPLE_RATE
from utils.corpus.audio_tree import find_audio
from utils.corpus.passes import in_chunks
from utils.corpus.preparation import MAX_SEQ_LEN, prepare
from utils.corpus.scaling import Scaling
from utils.corpus.sources import ArchiveSource, Source
from utils.corpus.utterance import Utterance
from utils.kaldi.write_archives import write_ark, write_blogmel
from utils.system.memory import reuse_freed_memory
from utils.system.workers import ordered_map

BYTES_PER_NUMBER = 8.5  # of text
AUDIO_SECONDS = 10
SAMPLE = Path(__file__).resolve().parent.parent / "librispeech_data" / "sample" / "audio"
OURS, PIPELINE = "text: this project", "text: plain pipeline"
PARSING, FLOAT_LOOP = "text: its parsing alone", "text: float() loop alone"
TEXT = (OURS, PIPELINE, PARSING, FLOAT_LOOP)
ARK, COPY, AUDIO = "binary .ark: this project", "a copy of the tensors", "audio: this project"


def main() -> None:
    args = parse_arguments()
    reuse_freed_memory()  # as prepare_data.py does
    if args.memory_of:
        report_memory(Path(args.memory_of), args.num_workers)
        return
    if args.time_of:
        with contextlib.redirect_stderr(io.StringIO()):
            seconds = seconds_of(make_variants(Path(args.root), args)[args.time_of])
        print(seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        megabytes, seconds_of_audio = make_input(root, args)
        seconds = median_seconds(root, args)
        memory = {count: peak_memory(root, count, args) for count in (args.frames, 10 * args.frames)}
    report(args, seconds, megabytes, seconds_of_audio, memory)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--megabytes", type=int, default=100, help="Size of the text archive.")
    add("--num_workers", type=int, default=os.cpu_count(), help="Processes that prepare_data.py uses.")
    add("--frames", type=int, default=1000, help="Frames of an utterance; also the utterances of the memory test.")
    add("--audio_files", type=int, default=200, help="Number of FLAC files of 10 seconds.")
    add("--repeats", type=int, default=3, help="Runs of each variant, of which the median counts.")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")
    add("--memory_of", help=argparse.SUPPRESS)  # an archive: this process only measures the memory it takes
    add("--time_of", help=argparse.SUPPRESS)  # a variant: this process only times it
    add("--root", help=argparse.SUPPRESS)
    return parser.parse_args()


def utterances(count: int, frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """Generated frames (frames, 80) float32 with as many digits as Kaldi prints."""
    noise = np.random.default_rng(0).standard_normal((2 * frames, MEL_DIM)).round(6).astype(np.float32)
    for i in range(count):
        start = i * 7 % frames
        yield f"1-1-{i:06d}", noise[start : start + frames]


def make_input(root: Path, args: argparse.Namespace) -> tuple[float, int]:
    """Archives and audio, all in the page cache. Returns the text's megabytes and the audio's seconds."""
    count = max(1, round(args.megabytes * 1e6 / (args.frames * MEL_DIM * BYTES_PER_NUMBER)))
    write_blogmel(root / "in.blogmel", utterances(count, args.frames))
    write_ark(root / "in.ark", utterances(count, args.frames))
    speech = np.concatenate([soundfile.read(path)[0] for path in sorted(SAMPLE.rglob("*.flac"))])
    (root / "audio").mkdir()
    for i in range(args.audio_files):
        samples = np.roll(speech, 997 * i)[: AUDIO_SECONDS * SAMPLE_RATE]
        soundfile.write(root / "audio" / f"{i % 10}-1-{i:06d}.flac", samples, SAMPLE_RATE)
    return (root / "in.blogmel").stat().st_size / 1e6, args.audio_files * AUDIO_SECONDS


def median_seconds(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each variant, in turns, each time in a new process and on a disk that has nothing to do."""
    prepare(ArchiveSource([root / "in.ark"]), root / "reference", Scaling(), MAX_SEQ_LEN, args.num_workers)
    seconds = {name: [] for name in make_variants(root, args)}
    settings = ["--num_workers", str(args.num_workers), "--root", str(root)]
    for _ in range(args.repeats):
        for name, values in seconds.items():
            os.sync()
            command = [sys.executable, __file__, "--time_of", name, *settings]
            values.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            shutil.rmtree(root / "output", ignore_errors=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_variants(root: Path, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Each variant's work, from input to files."""
    output = root / "output"

    def ours(source: Source, norm: str = "none") -> None:
        prepare(source, output, Scaling(norm), MAX_SEQ_LEN, args.num_workers)

    def copy() -> None:
        """As much as any input must write."""
        output.mkdir()
        for tensor in root.glob("reference/*.pt"):
            with (output / tensor.name).open("wb") as file:
                file.write(tensor.read_bytes())
                file.flush()
                os.fsync(file.fileno())

    return {
        OURS: lambda: ours(ArchiveSource([root / "in.blogmel"])),
        PIPELINE: lambda: plain_pipeline(root / "in.blogmel", output),
        PARSING: lambda: parse(root / "in.blogmel", args.num_workers),
        FLOAT_LOOP: lambda: plain_pipeline(root / "in.blogmel", None),
        ARK: lambda: ours(ArchiveSource([root / "in.ark"])),
        COPY: copy,
        AUDIO: lambda: ours(find_audio([root / "audio"]), "speaker"),
    }


def parse(archive: Path, num_workers: int) -> None:
    """Find, read, parse and check every utterance, and write nothing."""
    for _ in ordered_map(_load, in_chunks(ArchiveSource([archive]).utterances()), num_workers):
        pass


def _load(utterances: list[Utterance]) -> int:
    return sum(len(utterance.load()) for utterance in utterances)


def plain_pipeline(archive: Path, save_dir: Path | None) -> None:
    """What a first script would do; without a directory only its reading."""
    if save_dir:
        save_dir.mkdir()
    with archive.open() as file:
        for line in file:
            name, frames = line.strip(), []
            for row in file:
                if row == ".\n":
                    break
                frames.append([float(token) for token in row.split()])
            if save_dir:
                padded = torch.zeros(MAX_SEQ_LEN, MEL_DIM)
                padded[: len(frames)] = torch.FloatTensor(frames[:MAX_SEQ_LEN])
                torch.save(padded, save_dir / f"{name}.pt")


def peak_memory(root: Path, count: int, args: argparse.Namespace) -> float:
    """MB of all processes together, preparing this many short utterances with statistics per speaker."""
    archive = root / f"{count}.ark"
    write_ark(archive, utterances(count, 100))
    command = [sys.executable, __file__, "--memory_of", str(archive), "--num_workers", str(args.num_workers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_memory(archive: Path, num_workers: int) -> None:
    """In a process of its own: prints its peak, and that of its largest worker as often as there are workers."""
    prepare(ArchiveSource([archive]), archive.with_suffix(".prepared"), Scaling("speaker"), 100, num_workers)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(memory_mb("VmHWM") + num_workers * workers)


def report(
    args: argparse.Namespace,
    seconds: dict[str, float],
    megabytes: float,
    seconds_of_audio: int,
    memory: dict[int, float],
) -> None:
    """Print a table, or one JSON object."""
    cores = max(1, min(args.num_workers, os.cpu_count() or 1))
    real_time = seconds_of_audio / seconds[AUDIO] / cores
    results = {
        "text_megabytes": megabytes,
        "num_workers": args.num_workers,
        "seconds": seconds,
        "text_megabytes_per_second": {name: megabytes / seconds[name] for name in TEXT},
        "text_against_plain_pipeline": seconds[PIPELINE] / seconds[OURS],
        "text_against_float_loop": seconds[FLOAT_LOOP] / seconds[OURS],
        "parsing_against_float_loop": seconds[FLOAT_LOOP] / seconds[PARSING],
        "ark_against_text": seconds[OURS] / seconds[ARK],
        "ark_against_copy": seconds[COPY] / seconds[ARK],
        "audio_times_real_time_per_core": real_time,
        "peak_memory_mb": memory,
    }
    if args.json:
        print(json.dumps(results))
        return
    print(f"{megabytes:.0f} MB of text, {args.num_workers} workers")
    for name, value in seconds.items():
        speed = f"{megabytes / value:8.0f} MB/s of text" if name != AUDIO else f"{real_time:8.0f} x real time per core"
        print(f"{name:28}{value:8.2f} s  {speed}")
    print(f"text against the plain pipeline {results['text_against_plain_pipeline']:.1f}x, ", end="")
    print(f"against its float() loop alone {results['text_against_float_loop']:.1f}x, ", end="")
    print(f"parsing alone against that loop {results['parsing_against_float_loop']:.1f}x")
    print(f"binary .ark against text {results['ark_against_text']:.1f}x, ", end="")
    print(f"against the copy {results['ark_against_copy']:.1f}x")
    print("peak memory: " + ", ".join(f"{mb:.0f} MB for {count:,} utterances" for count, mb in memory.items()))


if __name__ == "__main__":
    main()
