"""Load a pre-trained APC model, and extract the features of a whole corpus.

    python load_pretrained_model.py --checkpoint logs/foo.dir/foo__epoch_100.model
    python load_pretrained_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt \
        --data librispeech_data/preprocessed/dev-clean-hires-norm-blogmel --save_dir features/dev-clean
    python load_pretrained_model.py --checkpoint bs32-rhl3-rhs512-rd0-adam-res-ts3.pt \
        --data LibriSpeech/dev-clean --save_dir features/dev-clean --format ark

If interrupted, run the same command again to continue. Sources, formats and options: docs/features.md.

In a notebook:

    model = load_pretrained("bs32-rhl3-rhs512-rd0-adam-res-ts3.pt")
    feats = features(model, waveform, sample_rate)  # (num_layers, frames, hidden_size)
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import warnings
from pathlib import Path

import numpy as np
import torch

from apc_model import APCModel
from utils.system.errors import run_script
from utils.training.checkpoints import load_weights, read_checkpoint

BUNDLED = Path(__file__).parent / "pretrained" / "apc-librispeech.safetensors"


def load_pretrained(
    path: str | Path = BUNDLED,
    device: str | torch.device = "cpu",
    residual: bool | None = None,
    time_shift: int | None = None,
) -> APCModel:
    """Load an APC checkpoint: one of this project, a released one (also of PyTorch 1.0), or one of s3prl.

    Weights only: nothing in the file is run. A training state, a checkpoint saved from a GPU or under DataParallel,
    one without its prediction layer, and .safetensors of export_model.py are read, too.

    Args:
        path: the checkpoint, by default the small model in pretrained/. Sizes, number of layers, GRU or LSTM and the
            prenet are read off its weights.
        device: device to load onto.
        residual: whether layers have residual connections. If None, taken from the configuration in the file (this
            project's, s3prl's), config.json beside it, or the released file name (`...-res-ts3.pt`).
        time_shift: n, in frames; if None, found the same way.

    Returns:
        The model in eval mode; `model.time_shift` is n, or None where unknown; `model.frame_spec` says how the frames
        that it reads are made from audio, as far as known.

    Raises:
        InputError: the file is damaged, would run code, or holds another model or other sizes: it names the key and
            both shapes; or whether the model is residual cannot be inferred.
    """
    checkpoint = read_checkpoint(path, residual, time_shift)
    with torch.device("meta"):  # no memory is taken before the sizes are known to be those of the weights
        model = APCModel(checkpoint.mel_dim, checkpoint.prenet, checkpoint.rnn, checkpoint.has_postnet)
    load_weights(model, checkpoint.weights, path)
    model.time_shift, model.frame_spec = checkpoint.time_shift, checkpoint.frame_spec
    if not checkpoint.has_postnet:
        warnings.warn(f"{path} has no prediction layer: the model gives features, and predicted is None", stacklevel=2)
    return model.to(device).eval()


@torch.no_grad()
def features(model: APCModel, waveform: torch.Tensor | np.ndarray, sample_rate: int, seed: str = "") -> torch.Tensor:
    """The features of a waveform, whose frames are made and scaled as those of the model's training data were.

    Where these were scaled for each speaker, the waveform's own mean and variance stand for its speaker's.

    Args:
        model: in eval mode.
        waveform: (samples,) or (1, samples), either floating point in [-1, 1] or int16.
        sample_rate: of the waveform, in Hz; 16000, or more, which is resampled.
        seed: of the dither, if the model's front end has one: an utterance's id, as extraction has it.

    Returns:
        (num_layers, frames, hidden_size), of the model's precision and on its device.

    Raises:
        InputError: another shape or type, a lower sample rate, a NaN, or fewer samples than a window has.
    """
    frames = model.frame_spec.make_frames(to_array(waveform), sample_rate, seed)
    return model(frames[None])[1][:, 0]


def to_array(waveform: torch.Tensor | np.ndarray) -> np.ndarray:
    """A waveform as an array, of any device; of bfloat16, which NumPy does not have, in float32."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = waveform.float() if waveform.dtype == torch.bfloat16 else waveform
    return np.asarray(waveform)


def describe(model: APCModel) -> str:
    """A model in one line."""
    rnn, prenet = model.rnn_config, model.prenet_config
    return (
        f"{rnn.num_layers} {rnn.rnn_type.upper()} layers of {rnn.hidden_size} on {model.mel_dim}-dim frames, "
        f"{f'prenet of {prenet.num_layers} layers' if prenet else 'no prenet'}, "
        f"{'' if model.postnet else 'no prediction layer, '}"
        f"{'residual' if rnn.residual else 'not residual'}, time shift {model.time_shift or 'unknown'}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.frame_spec.describe()}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Describe a model; extract features where --data is given, or see whether data fit it."""
    # what only the script needs: a notebook that loads a model imports PyTorch and NumPy
    from utils.features.arguments import parse_arguments
    from utils.features.check import check
    from utils.features.job import extract
    from utils.system.device import pick_device
    from utils.system.memory import reuse_freed_memory

    args = parse_arguments(arguments)
    args.checkpoint = args.checkpoint or BUNDLED
    reuse_freed_memory()
    warnings.filterwarnings("ignore", ".* has no prediction layer")  # the description says so
    model = load_pretrained(args.checkpoint, pick_device(args.device), args.residual, args.time_shift)
    print(f"{args.checkpoint}: {describe(model)}")
    if args.data:
        extract(model, args)
    elif args.check:
        check(model, args)


if __name__ == "__main__":
    run_script(main)
