"""An APC model as a checkpoint of s3prl: what its upstream `apc_local` loads, in s3prl 0.4.18.

Its APC is a stack of GRU layers, each but the first with a residual connection, or none with one. It computes the
frames of one front end, normalised over an utterance.
"""

import io

import torch

from apc_model import APCModel
from utils.audio.frames import NUM_MEL_BINS
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.normalization import MEAN_ONLY
from utils.system.errors import InputError
from utils.training.s3prl_frames import FRONT_END, NORMS, options_of

FEWEST_LAYERS = 3  # apc_local returns the output of the first, of the second and of the last


def to_s3prl(model: APCModel) -> bytes:
    """The checkpoint of a model.

    Raises:
        InputError: s3prl cannot express the model or compute its frames; names the reason.
    """
    if reason := _not_expressed(model) or _not_computed(model.frame_spec, model.mel_dim):
        raise InputError(f"s3prl's APC cannot hold this model: {reason}")
    rnn, weights = model.rnn_config, {}
    for name, weight in model.state_dict().items():
        name = name.replace("rnns.", "rnn_layers.").replace("postnet.layer.", "postnet.")
        weights[name] = (weight.squeeze(-1) if weight.dim() == 3 else weight).contiguous()  # its postnet is a Linear
    sizes = {"hidden_size": rnn.hidden_size, "num_layers": rnn.num_layers, "dropout": rnn.dropout}
    config = {
        "data": {"audio": options_of(model.frame_spec)},
        "model": {"paras": {**sizes, "residual": rnn.residual}},
        "task": {} if model.time_shift is None else {"n_future": model.time_shift},
    }
    stream = io.BytesIO()
    torch.save({"model": weights, "config": config}, stream)
    return stream.getvalue()


def _not_expressed(model: APCModel) -> str | None:
    """Why s3prl has no such network; None where it has."""
    rnn = model.rnn_config
    if rnn.rnn_type != "gru":
        return f"it has {rnn.rnn_type.upper()} layers, and s3prl's are GRUs"
    if model.prenet is not None:
        return "it has a prenet"
    if model.postnet is None:
        return "it has no prediction layer (postnet)"
    if rnn.num_layers < FEWEST_LAYERS:
        return f"it has {rnn.num_layers} layers, and s3prl reads the hidden states of {FEWEST_LAYERS} or more"
    first = rnn.first_residual_layer if rnn.input_size == rnn.hidden_size else max(1, rnn.first_residual_layer)
    if rnn.residual and first != 1:
        return f"its residual connections start at layer {first}, and in s3prl at layer 1"
    return None


def _not_computed(frames: FrameSpec, mel_dim: int) -> str | None:
    """Why s3prl does not compute these frames; None where it does."""
    if mel_dim != NUM_MEL_BINS:
        return f"it reads frames of {mel_dim}, not log Mel of {NUM_MEL_BINS} bins"
    if frames.front_end == FRONT_END and frames.norm in NORMS:
        return None
    nearest = "utterance-mean" if str(frames.norm).endswith(MEAN_ONLY) else "utterance-unbiased"
    options = f"--front_end {FRONT_END} --norm {nearest}"
    return f"s3prl does not compute its frames ({frames.describe()}); {options} has it compute the nearest"
