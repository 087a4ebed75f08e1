"""Load a pre-trained APC model, and extract the features of a whole corpus.

    python load_pretrained_model.py --checkpoint logs/foo.dir/foo__epoch_100.model
    python load_pretrained_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt \
        --data librispeech_data/preprocessed/dev-clean-hires-norm-blogmel --save_dir features/dev-clean
    python load_pretrained_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt \
        --data LibriSpeech/dev-clean --save_dir features/dev-clean --format ark

Killed half way, the same command goes on. Sources, formats and options: docs/features.md.

In a notebook:

    model = load_pretrained("bs32-rhl3-rhs512-rd0-adam-res-ts3.pt")
    with torch.no_grad():
        _, feats = model.forward(inputs, lengths)  # (num_layers, batch, seq_len, hidden_size)
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch

from apc_model import APCModel
from utils.audio.log_mel import NUM_MEL_BINS, hours
from utils.corpus.arguments import add_source_options, choose_norm, choose_speakers
from utils.corpus.frame_readers import gather_statistics, normalized
from utils.corpus.normalization import NORMALIZATION_FILE, Normalizer, Speakers
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.sources import AudioSource, Source, closing_lines, find_source
from utils.features.extraction import Extraction, Options, pick_layers
from utils.features.feature_files import ARK_FACTS, FACTS, FORMATS, extra_files, open_features
from utils.system.arguments import HelpFormatter, add_residual_option, count, positive
from utils.system.errors import InputError, run_script
from utils.system.files import refuse_to_remove
from utils.system.memory import reuse_freed_memory
from utils.system.signals import StopRequest
from utils.training.arguments import pick_device
from utils.training.checkpoints import load_weights, read_checkpoint


def load_pretrained(
    path: str | Path,
    device: str | torch.device = "cpu",
    residual: bool | None = None,
    time_shift: int | None = None,
) -> APCModel:
    """Load an APC checkpoint: one of this project, a released one (also of PyTorch 1.0), or one of s3prl.

    Weights only: nothing in the file is run. A training state, a checkpoint saved from a GPU or under DataParallel,
    one without its prediction layer, and .safetensors of export_model.py are read, too.

    Args:
        path: the checkpoint. Sizes, number of layers, GRU or LSTM and the prenet are read off its weights.
        device: where the model shall be.
        residual: whether layers have residual connections. Where None: the file itself tells (s3prl's, safetensors),
            config.json beside it, or the released file name (`...-res-ts3.pt`).
        time_shift: n, in frames; found out the same way.

    Returns:
        The model in eval mode; `model.time_shift` is n, or None where unknown.

    Raises:
        InputError: the file is damaged, would run code, or holds another model or other sizes: it names the key and
            both shapes; or whether the model is residual cannot be found out.
    """
    checkpoint = read_checkpoint(path, residual, time_shift)
    with torch.device("meta"):  # no memory is taken before the sizes are known to be those of the weights
        model = APCModel(checkpoint.mel_dim, checkpoint.prenet, checkpoint.rnn, checkpoint.has_postnet)
    load_weights(model, checkpoint.weights, path)
    model.time_shift = checkpoint.time_shift
    if not checkpoint.has_postnet:
        warnings.warn(f"{path} has no prediction layer: the model gives features, and predicted is None", stacklevel=2)
    return model.to(device).eval()


def describe(model: APCModel) -> str:
    """A model in one line."""
    rnn, prenet = model.rnn_config, model.prenet_config
    return (
        f"{rnn.num_layers} {rnn.rnn_type.upper()} layers of {rnn.hidden_size} on {model.mel_dim}-dim frames, "
        f"{f'prenet of {prenet.num_layers} layers' if prenet else 'no prenet'}, "
        f"{'' if model.postnet else 'no prediction layer, '}"
        f"{'residual' if rnn.residual else 'not residual'}, time shift {model.time_shift or 'unknown'}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters"
    )


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: this process's)."""
    parser = argparse.ArgumentParser(
        description="Load a pre-trained APC model, and extract features.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="The checkpoint: of this project, released, or of s3prl.")
    add("--data", nargs="+", type=Path, metavar="D",
        help="What to extract features from: a prepared directory, Kaldi archives (.blogmel, .ark, .scp), or a "
        "directory of audio; without it the model is only described.")  # fmt: skip
    add("--save_dir", help="The directory that the features are written to.")
    add("--layer", default="-1", help="Which layer's features to write: a number, -1 for the last, all, or mean.")
    add("--format", choices=FORMATS, default="pt",
        help="A .pt or .npy file an utterance, or one Kaldi archive, feats.ark with feats.scp.")  # fmt: skip
    add("--half", action="store_true", help="Write 16 bits a number: float16; in an archive, Kaldi's own (CM2).")
    add_residual_option(parser)
    add("--device", default="auto", help="Where to run: auto, cpu, cuda or cuda:i.")
    add("--batch_size", type=positive, default=32, help="Number of utterances in a batch.")
    add("--chunk", type=positive, default=1000, metavar="FRAMES",
        help="Compute so many frames of an utterance at a time; more take more memory.")  # fmt: skip
    add("--load_data_workers", type=count, default=2, help="Number of processes that read data.")
    add("--on_error", choices=("stop", "skip"), default="stop",
        help="Stop at the first bad utterance, or leave it out and list it in skipped.txt.")  # fmt: skip
    add("--overwrite", action="store_true", help="Remove the features that --save_dir holds, and start anew.")
    add_source_options(parser)
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.save_dir):
        parser.error("--data and --save_dir go together")
    return options


def check_frame_size(source: Source, model: APCModel) -> None:
    """Refuse data of another feature size before anything is written."""
    if isinstance(source, AudioSource):
        where, size = source.directory, NUM_MEL_BINS
    else:
        first = next(source.utterances(), None)
        if first is None:
            raise InputError("--data holds no utterance")
        try:
            where, size = first.where, first.load().shape[1]
        except InputError:
            return  # extraction stops there, or leaves it out
    if size != model.mel_dim:
        raise InputError(f"{where} has frames of {size} but the model reads {model.mel_dim}")


def describe_job(options: argparse.Namespace, model: APCModel, source: Source, norm: dict[str, str]) -> dict[str, Any]:
    """What decides the features: a directory is only ever continued by the same job."""
    return {
        "checkpoint": hashlib.sha256(Path(options.checkpoint).read_bytes()).hexdigest(),
        "residual": model.rnn_config.residual,
        "data": source.describe(),
        **norm,
        "layer": options.layer,
        "format": options.format,
        "half": options.half,
        "batch_size": options.batch_size,
        "chunk": options.chunk,
    }


def find_normalizer(
    options: argparse.Namespace, norm: str, source: Source, speakers: Speakers, out: OutputDirectory, stop: StopRequest
) -> Normalizer:
    """How frames are scaled; what has to be gathered for it is kept in normalization.json."""
    path = out.path / NORMALIZATION_FILE
    if options.norm_from:
        normalizer = Normalizer.load(options.norm_from)
    elif path.exists():
        return Normalizer.load(path)
    elif norm in ("speaker", "global"):
        skip_errors = options.on_error == "skip"
        normalizer = gather_statistics(source, norm, speakers, options.load_data_workers, skip_errors, stop)
    else:
        normalizer = Normalizer(norm)
    if normalizer.mode != "none":
        normalizer.save(path)
    return normalizer


def extract(model: APCModel, source: Source, options: argparse.Namespace, stop: StopRequest) -> None:
    """Write the features of every utterance into a directory, or go on writing them, and report.

    Raises:
        InputError: bad input, or a directory of something else.
        Stopped: a signal came.
    """
    norm = choose_norm(options, isinstance(source, AudioSource))
    speakers = choose_speakers(options, source, norm)
    scaling = {"data_norm": Normalizer.load(options.norm_from).digest() if options.norm_from else norm}
    if norm == "speaker" or options.norm_from:
        scaling["data_speakers"] = speakers.digest()
    made_from = describe_job(options, model, source, scaling)
    facts = FACTS | ARK_FACTS if options.format == "ark" else FACTS
    with OutputDirectory(options.save_dir, made_from, options.overwrite, extra_files, facts) as out:
        speed = "was complete before"
        if not out.complete:
            normalizer = find_normalizer(options, norm, source, speakers, out, stop)
            files = open_features(out, options.format, options.layer == "all", options.half)
            limits = Options(options.layer, options.batch_size, options.chunk, options.load_data_workers,
                             options.on_error == "skip")  # fmt: skip
            extraction = Extraction(model, out, files, limits, stop)
            try:
                extraction.run(source, normalized(source, normalizer, speakers))
            finally:
                files.close()
            speed = f"real-time factor {extraction.real_time_factor():.4f}"
        lengths = out.lengths()
    for line in closing_lines(source, Path(options.save_dir)):
        print(line)
    frames = sum(lengths.values())
    print(f"{options.save_dir}: features of {len(lengths)} utterances, {frames} frames, {hours(frames):.2f} hours, "
          f"{speed}")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Describe a model; extract features where --data is given."""
    options = parse_options(arguments)
    reuse_freed_memory()
    device = pick_device(options.device)
    warnings.filterwarnings("ignore", ".* has no prediction layer")  # the description says so
    model = load_pretrained(options.checkpoint, device, options.residual)
    print(f"{options.checkpoint}: {describe(model)}")
    if not options.data:
        return
    if Path(options.save_dir).resolve() in [path.resolve() for path in options.data]:
        raise InputError(f"--save_dir is --data, {options.save_dir}: give another directory")
    if options.overwrite:
        refuse_to_remove(
            options.save_dir,
            (*options.data, options.checkpoint, options.norm_from, options.utt2spk, options.spk2utt),
        )
    pick_layers(options.layer, model.num_feats)  # before --save_dir is touched
    source = find_source(options.data, options.channel, options.resample, options.on_error == "skip")
    check_frame_size(source, model)
    with StopRequest("run the same command again to continue") as stop:
        extract(model, source, options, stop)


if __name__ == "__main__":
    run_script(main)
