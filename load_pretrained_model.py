"""Load a pre-trained APC model, and extract features from prepared utterances.

    python load_pretrained_model.py --checkpoint logs/foo.dir/foo__epoch_100.model
    python load_pretrained_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt \
        --data librispeech_data/preprocessed/dev-clean-hires-norm-blogmel --save_dir features/dev-clean

In a notebook:

    model = load_pretrained("bs32-rhl3-rhs512-rd0-adam-res-ts3.pt")
    with torch.no_grad():
        _, feats = model.forward(inputs, lengths)  # (num_layers, batch, seq_len, hidden_size)
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from apc_model import APCModel
from datasets import Batch, BatchOrder, LibriSpeech, batches, make_loader
from utils.checkpoints import load_weights, read_checkpoint
from utils.command_line import HelpFormatter, natural, positive
from utils.errors import InputError, run_script
from utils.memory import reuse_freed_memory
from utils.options import pick_device
from utils.output_directory import OutputDirectory
from utils.packing import packing
from utils.prepared import save_tensor
from utils.signals import StopRequest

ALL_LAYERS = "all"


def load_pretrained(
    path: str | Path,
    device: str | torch.device = "cpu",
    residual: bool | None = None,
    time_shift: int | None = None,
) -> APCModel:
    """Load an APC checkpoint: one of this project, a released one (also of PyTorch 1.0), or one of s3prl.

    Args:
        path: the checkpoint. Sizes, number of layers, GRU or LSTM and the prenet are read off its weights.
        device: where the model shall be.
        residual: whether layers have residual connections. Where None: config.json beside the file tells, or the
            released file name (`...-res-ts3.pt`).
        time_shift: n, in frames; found out the same way.

    Returns:
        The model in eval mode; `model.time_shift` is n, or None where unknown.

    Raises:
        InputError: the file is damaged, would run code, or holds another model or other sizes: it names the key and
            both shapes; or whether the model is residual cannot be found out.
    """
    checkpoint = read_checkpoint(path, residual, time_shift)
    with torch.device("meta"):  # no memory is taken before the sizes are known to be those of the weights
        model = APCModel(checkpoint.mel_dim, checkpoint.prenet, checkpoint.rnn)
    load_weights(model, checkpoint.weights, path)
    model.time_shift = checkpoint.time_shift
    return model.to(device).eval()


def describe(model: APCModel) -> str:
    """A model in one line."""
    rnn, prenet = model.rnn_config, model.prenet_config
    return (
        f"{rnn.num_layers} {rnn.rnn_type.upper()} layers of {rnn.hidden_size} on {model.mel_dim}-dim frames, "
        f"{f'prenet of {prenet.num_layers} layers' if prenet else 'no prenet'}, "
        f"{'residual' if rnn.residual else 'not residual'}, time shift {model.time_shift or 'unknown'}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters"
    )


def pick_layers(layer: str, model: APCModel) -> list[int]:
    """Which of `feats`' layers --layer names: 'all', or an index, negative ones from the end.

    Raises:
        InputError: there is no such layer.
    """
    count = model.rnn_config.num_layers + (model.prenet is not None)
    if layer == ALL_LAYERS:
        return list(range(count))
    if not layer.removeprefix("-").isdecimal() or not -count <= int(layer) < count:
        raise InputError(f"--layer {layer}: give {ALL_LAYERS}, or a number from {-count} to {count - 1}")
    return [int(layer) % count]


@torch.no_grad()
def batch_features(model: APCModel, batch: Batch, layers: list[int]) -> Iterator[torch.Tensor]:
    """The features of each utterance of a batch, trimmed to its true length.

    Args:
        model: in eval mode.
        batch: inputs (batch, longest, mel_dim).
        layers: which layers.

    Yields:
        float32 (len(layers), frames, hidden_size) on the CPU, in the order of the batch.
    """
    batch_size, seq_len, _ = batch.inputs.shape
    device = model.postnet.layer.bias.device
    plan = packing(batch.lengths, seq_len, device)
    frames = batch.inputs.to(device).flatten(0, 1)[plan.index]  # (frames, mel_dim)
    wanted = [output for number, output in enumerate(model.encode(frames, plan)) if number in layers]
    padded = frames.new_zeros(len(layers), batch_size * seq_len, model.rnn_config.hidden_size)
    for number, output in enumerate(wanted):
        padded[number].index_copy_(0, plan.index, output)
    padded = padded.cpu().unflatten(1, (batch_size, seq_len))  # (layers, batch, seq_len, hidden_size)
    for row, length in enumerate(batch.lengths.tolist()):
        yield padded[:, row, :length]


def extract(
    model: APCModel, dataset: LibriSpeech, out: OutputDirectory, stop: StopRequest, options: argparse.Namespace
) -> None:
    """Write the features of a data set: <utterance id>.pt, (frames, hidden_size), or (layers, frames, hidden_size).

    Batches are always made up alike, so that a run that was killed and went on writes the same bits.

    Raises:
        InputError: a file is damaged.
        Stopped: a signal came.
    """
    layers = pick_layers(options.layer, model)
    order = BatchOrder(dataset.lengths, options.batch_size, bucketing=True)
    missing = [batch for batch in order if not all(out.has(dataset.utterance(index)) for index in batch)]
    bar = tqdm(total=len(dataset), initial=len(dataset) - sum(map(len, missing)), unit="utterance", disable=None)
    with bar, closing(batches(make_loader(dataset, missing, options.load_data_workers))) as loaded:
        for batch in loaded:
            for index, feats in zip(batch.indices, batch_features(model, batch, layers), strict=True):
                utterance = dataset.utterance(index)
                save_tensor(out.tensor_path(utterance), feats if options.layer == ALL_LAYERS else feats[0])
                out.record(utterance)
            bar.update(len(batch.indices))
            stop.check()
    out.finish({dataset.utterance(index): length for index, length in enumerate(dataset.lengths)}, skipped=[])


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: this process's)."""
    parser = argparse.ArgumentParser(
        description="Load a pre-trained APC model, and extract features.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="The checkpoint: of this project, released, or of s3prl.")
    add("--data", help="A prepared directory to extract features from; without it the model is only described.")
    add("--save_dir", help="The directory that the features are written to, one .pt an utterance.")
    add("--layer", default="-1", help="Which layer's features to write: a number, -1 for the last, or all.")
    add("--residual", action=argparse.BooleanOptionalAction, default=None,
        help="Whether the model has residual connections, where no config.json or file name tells.")  # fmt: skip
    add("--device", default="auto", help="Where to run: auto, cpu, cuda or cuda:i.")
    add("--batch_size", type=positive, default=32, help="Number of utterances in a batch.")
    add("--load_data_workers", type=natural, default=2, help="Number of processes that read data.")
    add("--overwrite", action="store_true", help="Empty --save_dir first, where it holds other features.")
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.save_dir):
        parser.error("--data and --save_dir go together")
    return options


def main() -> None:
    """Describe a model; extract features where --data is given."""
    options = parse_options()
    reuse_freed_memory()
    device = pick_device(options.device)
    model = load_pretrained(options.checkpoint, device, options.residual)
    print(f"{options.checkpoint}: {describe(model)}")
    if not options.data:
        return
    if Path(options.save_dir).resolve() == Path(options.data).resolve():
        raise InputError(f"--save_dir is --data, {options.data}: give another directory")
    pick_layers(options.layer, model)  # before --save_dir is touched
    dataset = LibriSpeech(options.data)
    if dataset.mel_dim != model.mel_dim:
        raise InputError(f"{options.data} has frames of {dataset.mel_dim} but the model reads {model.mel_dim}")
    made_from = {
        "checkpoint": hashlib.sha256(Path(options.checkpoint).read_bytes()).hexdigest(),
        "residual": model.rnn_config.residual,
        "data": dataset.fingerprint(),
        "layer": options.layer,
        "batch_size": options.batch_size,
    }
    with (
        StopRequest("run the same command again to continue") as stop,
        OutputDirectory(options.save_dir, made_from, options.overwrite) as out,
    ):
        if not out.complete:
            extract(model, dataset, out, stop, options)
    before = ", was complete before" if out.complete else ""
    print(f"{options.save_dir}: features of {len(dataset)} utterances, {sum(dataset.lengths)} frames{before}")


if __name__ == "__main__":
    run_script(main)
