"""Reading any APC checkpoint: this project's, the released ones, s3prl's.

Sizes, layers, cell type and prenet are read off the weights; residual and time shift, which weights do not show, come
from the caller, config.json beside the file, the checkpoint's own configuration, or the released file name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.configs import RNN_TYPES, PrenetConfig, RNNConfig
from utils.errors import InputError, one_line
from utils.files import read_json
from utils.prepared import load_untrusted

# bs32-rhl3-rhs512-rd0-adam-res-ts3.pt: batch size, layers, hidden size, dropout, optimizer, residual, time shift
RELEASED_NAME = re.compile(r"bs\d+-rhl\d+-rhs\d+-rd[\d.]+-\w+(?P<residual>-res)?-ts(?P<time_shift>\d+)")
GATES = {3: RNN_TYPES[0], 4: RNN_TYPES[1]}  # rows of weight_hh_l0 in hidden sizes


class Facts(NamedTuple):
    """What the weights of a checkpoint do not show."""

    residual: bool | None = None
    time_shift: int | None = None
    first_residual_layer: int = 0


class Checkpoint(NamedTuple):
    """Weights under the released names, the sizes they imply, and what is known beyond them."""

    weights: dict[str, torch.Tensor]
    mel_dim: int
    prenet: PrenetConfig | None
    rnn: RNNConfig
    time_shift: int | None


def read_checkpoint(path: str | Path, residual: bool | None = None, time_shift: int | None = None) -> Checkpoint:
    """Read an APC checkpoint of any origin.

    Args:
        path: a bare state dict, or a dict with the state dict under 'model' (s3prl's, or a saved training state).
        residual: whether the model has residual connections; found out where None.
        time_shift: how many frames ahead it predicts; found out where None.

    Raises:
        InputError: the file is damaged, would run code or holds another model (naming the key and both shapes), or
            whether it has residual connections cannot be found out.
    """
    path = Path(path)
    loaded = load_untrusted(path)
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    is_wrapped = isinstance(loaded.get("model"), Mapping)
    weights, is_s3prl = _released_names(path, loaded["model"] if is_wrapped else loaded)
    mel_dim, prenet, rnn = _sizes(path, weights)
    facts = _known_facts(path, loaded.get("config") if is_wrapped else None, is_s3prl)
    residual = facts.residual if residual is None else residual
    if residual is None:
        if rnn.num_layers > 1 or rnn.input_size == rnn.hidden_size:
            raise InputError(f"{path}: its weights do not show whether layers have residual connections; "
                             "say so (residual=True or False; --residual or --no-residual)")  # fmt: skip
        residual = False
    rnn = rnn._replace(residual=residual, first_residual_layer=facts.first_residual_layer)
    return Checkpoint(weights, mel_dim, prenet, rnn, facts.time_shift if time_shift is None else time_shift)


def _released_names(path: Path, state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights under the released names, and whether they had s3prl's."""
    weights = {}
    is_s3prl = any(str(key).removeprefix("module.").startswith("rnn_layers.") for key in state)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise InputError(f"{path} is not an APC checkpoint: {one_line(repr(key), 60)} is no tensor of weights")
        name = key.removeprefix("module.")  # as DataParallel saves it
        if is_s3prl:
            name = re.sub(r"^rnn_layers\.", "rnns.", name)
            name = re.sub(r"^postnet\.(?=weight|bias)", "postnet.layer.", name)
            if name == "postnet.layer.weight" and value.dim() == 2:
                value = value.unsqueeze(-1)  # a Linear's (mel_dim, hidden) to a Conv1d's (mel_dim, hidden, 1)
        weights[name] = value.float()
    return weights, is_s3prl


def _sizes(path: Path, weights: Mapping[str, torch.Tensor]) -> tuple[int, PrenetConfig | None, RNNConfig]:
    """Sizes read off the weights. Whether all of them agree is seen when the model takes them."""
    first_hh, first_ih = (_matrix(path, weights, f"rnns.0.weight_{kind}_l0", 2) for kind in ("hh", "ih"))
    hidden_size = first_hh.size(1)
    if first_hh.size(0) % hidden_size or first_hh.size(0) // hidden_size not in GATES:
        gru, lstm = ((gates * hidden_size, hidden_size) for gates in GATES)
        shape = tuple(first_hh.shape)
        raise InputError(f"{path}: rnns.0.weight_hh_l0 has shape {shape}, not a GRU's {gru} or an LSTM's {lstm}")
    mel_dim = _matrix(path, weights, "postnet.layer.weight", 3).size(0)
    num_layers = _count(weights, r"rnns\.(\d+)\.")
    prenet_layers = _count(weights, r"prenet\.layers\.(\d+)\.")
    prenet = PrenetConfig(mel_dim, hidden_size, prenet_layers, 0.0) if prenet_layers else None
    input_size = hidden_size if prenet else mel_dim
    if first_ih.size(1) != input_size:
        raise InputError(f"{path}: rnns.0.weight_ih_l0 has shape {tuple(first_ih.shape)}, "
                         f"not ({first_hh.size(0)}, {input_size})")  # fmt: skip
    rnn_type = GATES[first_hh.size(0) // hidden_size]
    return mel_dim, prenet, RNNConfig(input_size, hidden_size, num_layers, 0.0, False, rnn_type)


def _matrix(path: Path, weights: Mapping[str, torch.Tensor], key: str, dims: int) -> torch.Tensor:
    if key not in weights:
        raise InputError(f"{path} is not an APC checkpoint: it has no {key}")
    if weights[key].dim() != dims or 0 in weights[key].shape:
        raise InputError(f"{path}: {key} has shape {tuple(weights[key].shape)}, not one of {dims} sizes above 0")
    return weights[key]


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for key in weights if (match := re.match(pattern, key))})


def _known_facts(path: Path, own_config: Any, is_s3prl: bool) -> Facts:
    """Residual and time shift, from config.json beside the file, the file's own configuration, or its name."""
    beside = path.parent / "config.json"
    if beside.is_file() and "__" in path.name:  # as this project names its checkpoints
        config = read_json(beside)
        name = config.get("experiment_name")
        if isinstance(name, str) and path.name.startswith(f"{name}__"):
            return _facts(beside, config.get("rnn_residual"), config.get("time_shift"))
    if is_s3prl:
        residual, time_shift = _search(own_config, "residual"), _search(own_config, "n_future")
        return _facts(path, residual, time_shift)._replace(first_residual_layer=1)
    if match := RELEASED_NAME.search(path.name):
        return Facts(match["residual"] is not None, int(match["time_shift"]))
    return Facts()


def _facts(where: Path, residual: Any, time_shift: Any) -> Facts:
    if not isinstance(residual, bool | None) or not isinstance(time_shift, int | None):
        raise InputError(f"{where}: residual {one_line(residual, 40)} and time shift {one_line(time_shift, 40)} should "
                         "be true or false and a number of frames")  # fmt: skip
    return Facts(residual, time_shift)


def _search(config: Any, key: str, depth: int = 6) -> Any:
    """The first value of a key in nested dicts, or None."""
    if not isinstance(config, Mapping) or depth == 0:
        return None
    if key in config:
        return config[key]
    found = (_search(value, key, depth - 1) for value in config.values())
    return next((value for value in found if value is not None), None)


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Make weights those of a model (which may be on the meta device), or an InputError: a key and both shapes."""
    expected = model.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        have, want = (tuple(w[key].shape) if key in w else "nothing" for w in (weights, expected))
        if have != want:
            raise InputError(f"{where}: {key} is {have} in the checkpoint, and {want} in the model")
    model.load_state_dict(weights, assign=True)
