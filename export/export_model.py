"""Export an APC feature extractor to other runtimes.

    python export/export_model.py --checkpoint logs/foo.dir/foo__epoch_100.model --save apc.onnx
    python export/export_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt --save apc.safetensors

The suffix of --save is the format:

    .onnx         ONNX, for onnxruntime and others: inputs `frames` float32 (batch, seq_len, mel_dim) and `lengths`
                  int64 (batch,), any batch and length; output `feats` float32 (num_layers, batch, seq_len, hidden_size)
    .torchscript  the same function as TorchScript, frozen, for LibTorch: torch.jit.load(file)(frames, lengths)
    .safetensors  the weights, with the configuration as metadata, for load_pretrained and others
    .ckpt         a checkpoint of s3prl, for its upstream apc_local
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import io
import json
import warnings

import torch

from apc_model import APCModel
from export.s3prl_checkpoint import to_s3prl
from load_pretrained_model import load_pretrained
from utils.audio.front_ends import FRONT_ENDS
from utils.corpus.normalization import MODES
from utils.system.arguments import HelpFormatter, add_residual_option, nonnegative_float
from utils.system.errors import InputError, run_script
from utils.system.files import atomic_write, prepare_to_write
from utils.training.checkpoints import CONFIG_KEY, SAFETENSORS_SUFFIX, describe_config

OPSET = 18
EXAMPLE_BATCH, EXAMPLE_FRAMES = 2, 5  # of the inputs for tracing


class LengthsCheck(torch.nn.Module):
    """A check that can be exported: where lengths do not fit, an index is out of range, which runtimes refuse on a CPU.

    onnxruntime's error names the operator, after the attribute that holds this module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, lengths: torch.Tensor, seq_len: int | torch.Tensor) -> torch.Tensor:
        """The lengths, (batch,), each from 1 to seq_len."""
        is_wrong = (lengths < 1) | (lengths > seq_len)
        return lengths + self.zero[is_wrong.long()]


class FeatureExtractor(torch.nn.Module):
    """The features of a padded batch, computed without packing, which other runtimes lack.

    Padding at the end never changes a true frame, because the recurrent layers are unidirectional.
    """

    def __init__(self, model: APCModel) -> None:
        super().__init__()
        self.model = model
        self.lengths_must_be_from_1_to_seq_len = LengthsCheck()

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features of every layer (with a prenet, its output first), zero on padding.

        Args:
            frames: float32 (batch, seq_len, mel_dim), padded at the end.
            lengths: int64 (batch,), in frames, in any order.

        Returns:
            (num_layers, batch, seq_len, hidden_size)
        """
        lengths = self.lengths_must_be_from_1_to_seq_len(lengths, frames.size(1))
        feats = self.model.padded_feats(frames)
        is_true = torch.arange(frames.size(1), device=frames.device) < lengths.unsqueeze(1)  # (batch, seq_len)
        return torch.where(is_true[None, :, :, None], feats, torch.zeros_like(feats))


def _example(model: APCModel) -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.zeros(EXAMPLE_BATCH, EXAMPLE_FRAMES, model.mel_dim)
    return frames, torch.tensor([EXAMPLE_FRAMES, EXAMPLE_FRAMES - 1])


def _config_json(model: APCModel) -> str:
    """Sizes, time shift and how frames are made."""
    return json.dumps(describe_config(model))


def to_onnx(model: APCModel) -> bytes:
    """The feature extractor as ONNX, with its GRU and LSTM operators, and the configuration in its metadata_props.

    Raises InputError where onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError("an .onnx file requires the package onnx: pip install onnx") from error
    stream = io.BytesIO()
    names = {"input_names": ["frames", "lengths"], "output_names": ["feats"]}
    axes = {"frames": {0: "batch", 1: "seq_len"}, "lengths": {0: "batch"}, "feats": {1: "batch", 2: "seq_len"}}
    options = {"dynamo": False, "opset_version": OPSET, **names, "dynamic_axes": axes}
    with warnings.catch_warnings():
        # The newer exporter, based on torch.export, unrolls a recurrent layer for one fixed length
        warnings.simplefilter("ignore")
        torch.onnx.export(FeatureExtractor(model).eval(), _example(model), stream, **options)
    exported = onnx.load_from_string(stream.getvalue())
    onnx.helper.set_model_props(exported, {CONFIG_KEY: _config_json(model)})
    return exported.SerializeToString()


def to_torchscript(model: APCModel) -> bytes:
    """The feature extractor as frozen TorchScript, with the configuration as an extra file."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # to use torch.export, see above
        traced = torch.jit.trace(FeatureExtractor(model).eval(), _example(model))
        torch.jit.save(torch.jit.freeze(traced), stream, {CONFIG_KEY: _config_json(model)})
    return stream.getvalue()


def to_safetensors(model: APCModel) -> bytes:
    """The weights under the released names, with the model's configuration as metadata."""
    import safetensors.torch

    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    return safetensors.torch.save(weights, {"format": "pt", CONFIG_KEY: _config_json(model)})


EXPORTS = {".onnx": to_onnx, ".torchscript": to_torchscript, ".safetensors": to_safetensors, ".ckpt": to_s3prl}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="Any that load_pretrained reads.")
    help = f"Write or replace this file; its suffix is {', '.join(EXPORTS)}."
    add("--save", type=Path, required=True, metavar="FILE", help=help)
    add("--half", action="store_true", help="Write 16 bits per weight, for .safetensors: they are loaded as float32.")
    add_residual_option(parser)
    help = "Record that the model reads frames of this front end, if that is not what the checkpoint says."
    add("--front_end", choices=FRONT_ENDS, help=help)
    add("--dither", type=nonnegative_float, metavar="X", help="Record that they have this dither.")
    add("--norm", choices=MODES, help="Record that they are normalised so.")
    args = parser.parse_args(arguments)
    if args.save.suffix not in EXPORTS:
        parser.error(f"--save must end in {', '.join(EXPORTS)}")
    if args.half and args.save.suffix != SAFETENSORS_SUFFIX:
        parser.error(f"--half is for {SAFETENSORS_SUFFIX}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Write one file."""
    args = parse_arguments(arguments)
    prepare_to_write(args.save, args.checkpoint)
    model = load_pretrained(args.checkpoint, residual=args.residual)
    model.frame_spec = model.frame_spec.changed(args.front_end, args.dither, args.norm)
    content = EXPORTS[args.save.suffix](model.half() if args.half else model)
    with atomic_write(args.save) as file:
        file.write(content)
    print(f"{args.save}: {len(content):,} bytes")


if __name__ == "__main__":
    run_script(main)
