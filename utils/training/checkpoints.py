"""Reading any APC checkpoint: this project's, the released ones, s3prl's, safetensors.

Sizes, layers, cell type and prenet are read off the weights; residual, time shift and how frames were made, which
weights do not show, come from the caller, the configuration inside the file, config.json beside it, s3prl's
configuration, or the released file name.
"""

import argparse
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.audio.front_ends import FRONT_ENDS, UNRECORDED_FRONT_END
from utils.configs import RELEASED_NAME, RNN_GATES, PrenetConfig, RNNConfig
from utils.corpus.frame_spec import FrameSpec
from utils.system.errors import InputError, is_out_of_memory, one_line
from utils.system.files import read_json
from utils.system.reading import read_bytes
from utils.system.untrusted import load_untrusted
from utils.training import s3prl_frames

SAFETENSORS_SUFFIX = ".safetensors"
CONFIG_KEY = "apc_config"  # in the metadata of a file: JSON of what `describe_config` gives
FRAMES_KEY = "frames"  # in that, and in config.json: what `FrameSpec.to_json` gives
OWN_NAME = re.compile(r".+__(epoch_\d+|best)\.model|.+__step_\d+\.state")
MAX_CHECKPOINT_BYTES = 1 << 36  # 64 GiB, with the optimizer's state
OPTIMIZER_KEYS = ("optimizer", "Optimizer")
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
RNN_TYPE_OF_GATES = {gates: name for name, gates in RNN_GATES.items()}


class Facts(NamedTuple):
    """Facts of a model that its weights do not show."""

    residual: bool | None = None
    time_shift: int | None = None
    first_residual_layer: int = 0
    frame_spec: FrameSpec = FrameSpec()


class Checkpoint(NamedTuple):
    """Weights under the released names, the sizes they imply, and what is known beyond them."""

    weights: dict[str, torch.Tensor]
    mel_dim: int
    prenet: PrenetConfig | None
    rnn: RNNConfig
    time_shift: int | None
    has_postnet: bool
    frame_spec: FrameSpec


def read_checkpoint(path: str | Path, residual: bool | None = None, time_shift: int | None = None) -> Checkpoint:
    """Read an APC checkpoint of any origin.

    Args:
        path: a bare state dict, a dict with the state dict under 'model' (s3prl's, or a saved training state), or a
            .safetensors file.
        residual: whether the model has residual connections; inferred if None.
        time_shift: how many frames ahead it predicts; inferred if None.

    Raises:
        InputError: the file is damaged, would run code or holds another model (naming the key and both shapes), or
            whether it has residual connections cannot be inferred.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        state, own_config = _read_safetensors(path)
    else:
        state, own_config = _read_pytorch(path)
    weights, is_s3prl = _released_names(path, state)
    mel_dim, prenet, rnn = _sizes(path, weights)
    _check_sizes(path, rnn, own_config)
    facts = _known_facts(path, own_config, is_s3prl)
    residual = facts.residual if residual is None else residual
    if residual is None:
        if rnn.num_layers > 1 or rnn.input_size == rnn.hidden_size:
            message = "its weights do not show whether layers have residual connections"
            raise InputError(f"{path}: {message}; say so (residual=True or False; --residual or --no-residual)")
        residual = False
    rnn = rnn._replace(residual=residual, first_residual_layer=facts.first_residual_layer)
    time_shift = facts.time_shift if time_shift is None else time_shift
    return Checkpoint(weights, mel_dim, prenet, rnn, time_shift, _has_postnet(weights), facts.frame_spec)


def _read_pytorch(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A state dict, and what else the file holds, its optimizer's state aside."""
    loaded = load_untrusted(path, MAX_CHECKPOINT_BYTES)
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    if not isinstance(loaded.get("model"), Mapping):
        metadata = getattr(loaded, "_metadata", None)  # of an OrderedDict, as PyTorch's state_dict() has it
        text = metadata.get(CONFIG_KEY) if isinstance(metadata, Mapping) else None
        return loaded, {} if text is None else {CONFIG_KEY: _parse_config(path, text)}
    return loaded["model"], {key: loaded[key] for key in loaded if key not in ("model", *OPTIMIZER_KEYS)}


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A state dict, and the configuration that export_model.py put into the file."""
    from safetensors.torch import load as load_safetensors

    content = read_bytes(path, MAX_CHECKPOINT_BYTES)
    try:
        weights = load_safetensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = header.get("__metadata__", {}).get(CONFIG_KEY, "{}")
    except Exception as error:  # safetensors' own, or of damaged JSON
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} is damaged or is not a safetensors file: {one_line(error, 200)}") from error
    return weights, {CONFIG_KEY: _parse_config(path, text)}


def _parse_config(path: Path, text: Any) -> Any:
    """The configuration in the metadata of a file."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its {CONFIG_KEY} is not JSON: {one_line(error, 200)}") from error


def describe_config(model: torch.nn.Module) -> dict[str, Any]:
    """All that makes an APCModel besides its weights, as JSON types."""
    prenet = model.prenet_config
    return {
        "mel_dim": model.mel_dim,
        "prenet": None if prenet is None else prenet._asdict(),
        "rnn": model.rnn_config._asdict(),
        "time_shift": model.time_shift,
        FRAMES_KEY: model.frame_spec.to_json(),
    }


def state_with_config(model: torch.nn.Module) -> OrderedDict[str, torch.Tensor]:
    """A model's state dict on the CPU, with `describe_config` in its metadata, which load_state_dict passes over."""
    state = model.state_dict()
    copied = OrderedDict((name, value.detach().cpu()) for name, value in state.items())
    copied._metadata = OrderedDict(state._metadata)
    copied._metadata[CONFIG_KEY] = json.dumps(describe_config(model))
    return copied


def _released_names(path: Path, state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights under the released names, and whether they had s3prl's."""
    weights = {}
    is_s3prl = any(str(key).removeprefix("module.").startswith("rnn_layers.") for key in state)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.dtype not in WEIGHT_TYPES:
            raise InputError(f"{path} is not an APC checkpoint: {one_line(repr(key), 60)} is not a tensor of weights")
        name = key.removeprefix("module.")  # as DataParallel saves it
        if is_s3prl:
            name = re.sub(r"^rnn_layers\.", "rnns.", name)
            name = re.sub(r"^postnet\.(?=weight|bias)", "postnet.layer.", name)
            if name == "postnet.layer.weight" and value.dim() == 2:
                value = value.unsqueeze(-1)  # a Linear's (mel_dim, hidden) to a Conv1d's (mel_dim, hidden, 1)
        weights[name] = value.detach().float()
        if not weights[name].isfinite().all():
            raise InputError(f"{path}: {one_line(key, 60)} has a weight that is NaN, infinite or too large for float32")
    return weights, is_s3prl


def _sizes(path: Path, weights: Mapping[str, torch.Tensor]) -> tuple[int, PrenetConfig | None, RNNConfig]:
    """Sizes read off the weights. Whether all of them agree is seen when the model takes them."""
    first_hh, first_ih = (_matrix(path, weights, f"rnns.0.weight_{kind}_l0", 2) for kind in ("hh", "ih"))
    hidden_size = first_hh.size(1)
    gates, rest = divmod(first_hh.size(0), hidden_size)
    if rest or gates not in RNN_TYPE_OF_GATES:
        gru, lstm = ((number * hidden_size, hidden_size) for number in RNN_TYPE_OF_GATES)
        shape = tuple(first_hh.shape)
        raise InputError(f"{path}: rnns.0.weight_hh_l0 has shape {shape}, not a GRU's {gru} or an LSTM's {lstm}")
    num_layers = _count(weights, r"rnns\.(\d+)\.")
    prenet_layers = _count(weights, r"prenet\.layers\.(\d+)\.")
    if _has_postnet(weights):
        mel_dim = _matrix(path, weights, "postnet.layer.weight", 3).size(0)
    else:
        mel_dim = (_matrix(path, weights, "prenet.layers.0.weight", 2) if prenet_layers else first_ih).size(1)
    prenet = PrenetConfig(mel_dim, hidden_size, prenet_layers, 0.0) if prenet_layers else None
    input_size = hidden_size if prenet else mel_dim
    if first_ih.size(1) != input_size:
        expected = (first_hh.size(0), input_size)
        raise InputError(f"{path}: rnns.0.weight_ih_l0 has shape {tuple(first_ih.shape)}, not {expected}")
    return mel_dim, prenet, RNNConfig(input_size, hidden_size, num_layers, 0.0, False, RNN_TYPE_OF_GATES[gates])


def _check_sizes(path: Path, rnn: RNNConfig, own_config: dict[str, Any]) -> None:
    """Refuse weights of other sizes than the file's own configuration says, as of a layer that is missing."""
    said = _search(own_config.get(CONFIG_KEY), "rnn") or _search(own_config, "paras")
    for key in ("num_layers", "hidden_size"):
        size, found = _search(said, key), getattr(rnn, key)
        if size is not None and not (isinstance(size, int) and size == found):
            raise InputError(f"{path}: {key} is {one_line(size, 40)} in its configuration, and {found} in its weights")


def _has_postnet(weights: Mapping[str, torch.Tensor]) -> bool:
    return any(key.startswith("postnet.") for key in weights)


def _matrix(path: Path, weights: Mapping[str, torch.Tensor], key: str, dims: int) -> torch.Tensor:
    if key not in weights:
        raise InputError(f"{path} is not an APC checkpoint: it has no {key}")
    if weights[key].dim() != dims or 0 in weights[key].shape:
        raise InputError(f"{path}: {key} has shape {tuple(weights[key].shape)}, not one of {dims} sizes above 0")
    return weights[key]


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for key in weights if (match := re.match(pattern, key))})


def _known_facts(path: Path, own_config: dict[str, Any], is_s3prl: bool) -> Facts:
    """Residual and time shift, from the file's own configuration, config.json beside the file, or its name."""
    config = own_config.get(CONFIG_KEY, {})
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged: its {CONFIG_KEY} is a {type(config).__name__}")
    if config:
        first = _search(config, "first_residual_layer")
        if not isinstance(first, int | None) or (first or 0) < 0:
            raise InputError(f"{path}: first_residual_layer {one_line(first, 40)} is not a layer")
        facts = _facts(path, _search(config, "residual"), _search(config, "time_shift"))
        return facts._replace(first_residual_layer=first or 0, frame_spec=_recorded_spec(config, path))
    beside = path.parent / "config.json"
    if beside.is_file() and "__" in path.name:  # as this project names its checkpoints
        config = read_json(beside)
        name = config.get("experiment_name")
        if isinstance(name, str) and path.name.startswith(f"{name}__"):
            facts = _facts(beside, config.get("rnn_residual"), config.get("time_shift"))
            return facts._replace(frame_spec=_recorded_spec(config, beside))
    if is_s3prl:
        # s3prl's configuration, or, where that does not tell, the command line's options that stand beside it
        places = [own_config.get("config"), own_config]
        residual, time_shift = (_search(places, key) for key in ("residual", "n_future"))
        audio = _search(places, "audio")
        frame_spec = s3prl_frames.spec_of(audio if isinstance(audio, Mapping) else {})
        return _facts(path, residual, time_shift)._replace(first_residual_layer=1, frame_spec=frame_spec)
    if match := RELEASED_NAME.search(path.name):
        frame_spec = FrameSpec.of_front_end(FRONT_ENDS["released"])
        return Facts(match["residual"] is not None, int(match["time_shift"]), frame_spec=frame_spec)
    return Facts(frame_spec=_recorded_spec({}, path) if OWN_NAME.fullmatch(path.name) else FrameSpec())


def _recorded_spec(config: Mapping[str, Any], location: Path) -> FrameSpec:
    """How a model's frames were made, by its configuration; assumed for one older than the record."""
    if FRAMES_KEY in config:
        return FrameSpec.from_json(config[FRAMES_KEY], location)
    return FrameSpec.of_front_end(FRONT_ENDS[UNRECORDED_FRONT_END], is_assumed=True)


def _facts(location: Path, residual: Any, time_shift: Any) -> Facts:
    if not isinstance(residual, bool | None) or not isinstance(time_shift, int | None):
        found = f"residual {one_line(residual, 40)} and time shift {one_line(time_shift, 40)}"
        raise InputError(f"{location}: {found} should be true or false and a number of frames")
    return Facts(residual, time_shift)


def _search(config: Any, key: str, depth: int = 6) -> Any:
    """The first value of a key in nested dicts, lists and argparse's namespaces, or None."""
    config = vars(config) if isinstance(config, argparse.Namespace) else config
    if depth == 0 or not isinstance(config, Mapping | list):
        return None
    if isinstance(config, Mapping) and key in config:
        return config[key]
    found = (_search(value, key, depth - 1) for value in (config.values() if isinstance(config, Mapping) else config))
    return next((value for value in found if value is not None), None)


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], location: str | Path) -> None:
    """Load weights into a model, which may be on the meta device; an InputError names a key and both shapes."""
    expected = model.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        have, want = (tuple(w[key].shape) if key in w else "nothing" for w in (weights, expected))
        if have != want:
            raise InputError(f"{location}: {key} is {have} in the checkpoint, and {want} in the model")
    model.load_state_dict(weights, assign=True)
