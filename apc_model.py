"""Autoregressive Predictive Coding: the model and nothing else.

A stack of unidirectional recurrent layers reads log-Mel frames x_1..x_t and predicts a frame to come, x_{t+n}
(Chung, Hsu, Tang and Glass, Interspeech 2019, section 2). Its hidden states are speech features.

    model = APCModel(80, None, RNNConfig(80, 512, 3, 0.0, residual=True))
    predicted, feats = model(inputs, lengths)
    feats, state = model.stream(frames, state)  # the same features while frames come in; model.eval() first

Frames stay packed (true frames only, no padding) from the first layer to the last.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from utils.configs import RNN_TYPES, PrenetConfig, RNNConfig
from utils.corpus.frame_spec import FrameSpec
from utils.rnn.layer import State, run_layer
from utils.rnn.packing import Packing, check_lengths
from utils.system.errors import InputError

RNN_CLASSES = {"gru": nn.GRU, "lstm": nn.LSTM}


class Prenet(nn.Module):
    """Feed-forward layers between the frames and the recurrent stack: num_layers x [Linear, ReLU, Dropout]."""

    def __init__(self, config: PrenetConfig) -> None:
        super().__init__()
        sizes = [config.input_size] + [config.hidden_size] * config.num_layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.dropout = config.dropout

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., input_size) -> (..., hidden_size)."""
        for layer in self.layers:
            inputs = F.dropout(F.relu(layer(inputs)), self.dropout, self.training)
        return inputs


class Postnet(nn.Module):
    """The prediction layer: one linear map per frame, kept as the Conv1d of kernel size 1 that checkpoints hold."""

    def __init__(self, hidden_size: int, mel_dim: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(hidden_size, mel_dim, kernel_size=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., mel_dim)."""
        return F.linear(inputs, self.layer.weight.squeeze(-1), self.layer.bias)


class APCModel(nn.Module):
    """The APC network. Raises ValueError if sizes are inconsistent.

    Args:
        mel_dim: size of a frame, 80 in the papers.
        prenet_config: layers before the recurrent stack, or None (the papers' default).
        rnn_config: the recurrent stack.
        has_postnet: whether there is a prediction layer; without one the model gives features only.

    Attributes:
        time_shift: n, how many frames ahead the model was trained to predict; None where unknown.
        frame_spec: how the frames that it was trained on were made, as far as known.
    """

    def __init__(
        self, mel_dim: int, prenet_config: PrenetConfig | None, rnn_config: RNNConfig, has_postnet: bool = True
    ) -> None:
        super().__init__()
        _check_configs(mel_dim, prenet_config, rnn_config)
        self.mel_dim = mel_dim
        self.prenet_config = prenet_config
        self.rnn_config = rnn_config
        self.time_shift: int | None = None
        self.frame_spec = FrameSpec()
        self.prenet = None if prenet_config is None else Prenet(prenet_config)
        sizes = [rnn_config.input_size] + [rnn_config.hidden_size] * rnn_config.num_layers
        self.rnns = nn.ModuleList(RNN_CLASSES[rnn_config.rnn_type](*pair) for pair in pairwise(sizes))
        self.postnet = Postnet(rnn_config.hidden_size, mel_dim) if has_postnet else None

    def extra_repr(self) -> str:
        """What print(model) says besides the layers."""
        time_shift, residual = self.time_shift or "unknown", self.rnn_config.residual
        return f"residual: {residual}, time shift: {time_shift}, frames: {self.frame_spec.describe()}"

    @property
    def num_feats(self) -> int:
        """The number of layers of `feats`: the recurrent ones, and the prenet's output before them."""
        return len(self.rnns) + (self.prenet is not None)

    def forward(
        self, inputs: torch.Tensor | np.ndarray, lengths: torch.Tensor | np.ndarray | Sequence[int] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Predict future frames and return the hidden states of every layer.

        Args:
            inputs: floating point (batch, seq_len, mel_dim), log-Mel frames padded at the end with anything.
            lengths: (batch,), true frames of each utterance, in any order, on any device; None if there is no padding.

        Returns:
            predicted: (batch, seq_len, mel_dim), the prediction layer's bias on padding; None without such a layer.
            feats: (num_layers, batch, seq_len, hidden_size), each layer's output after its residual connection, zero
                on padding. With a prenet its output comes first: (num_layers + 1, ...); there a padding frame holds
                what the prenet gives for zeros.

        Raises:
            ValueError: the size of a frame is not mel_dim, or the lengths do not fit the batch.
        """
        inputs = self._to_weights(inputs)
        batch, seq_len = self._check_inputs(inputs)
        lengths = [seq_len] * batch if lengths is None else lengths
        packing = Packing.from_lengths(check_lengths(lengths, batch, seq_len), seq_len, inputs.device)
        outputs, _ = self.encode(packing.pack(inputs), packing)  # of (frames, hidden_size)
        predicted = None
        if self.postnet is not None:
            predicted = self.postnet.layer.bias.expand(batch * seq_len, -1)  # (batch * seq_len, mel_dim)
            made = self.postnet(outputs[-1]).to(predicted.dtype)  # autocast's may differ
            predicted = predicted.index_copy(0, packing.index, made).view(batch, seq_len, -1)
        feats = inputs.new_zeros(len(outputs), batch * seq_len, self.rnn_config.hidden_size)
        if self.prenet is not None:
            feats[0] = self.prenet(inputs.new_zeros(self.mel_dim))
        for number, output in enumerate(outputs):
            feats[number].index_copy_(0, packing.index, output.to(feats.dtype))
        return predicted, feats.view(len(outputs), batch, seq_len, -1)

    @torch.no_grad()
    def stream(
        self, frames: torch.Tensor | np.ndarray, state: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The features of frames as they come in: those of `forward`, to float precision, however they are cut.

        For a model in eval mode, without gradients. A call costs one pass over the weights, however few its frames:
        less than a millisecond on a core for one frame and three layers of 512.

        Args:
            frames: float (batch, n, mel_dim), the next n frames of each of the streams, n ≥ 1.
            state: what the previous call returned; None at the start of the streams.

        Returns:
            feats: (num_layers, batch, n, hidden_size), with a prenet one more, as of `forward`.
            state: for the next call: (h,) of a GRU, (h, c) of an LSTM, each (num_layers, batch, hidden_size). Plain
                tensors, never changed by later calls: save them, stack them, or go back to them.

        Raises:
            ValueError: no frame, or frames of another size; a state of another batch size or model; training mode.
        """
        frames = self._to_weights(frames)
        self._check_stream(frames, state)
        return self._encode_padded(frames, state or ())

    def padded_feats(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the features of whole padded rows with PyTorch's own layers only, which exporters can trace.

        Returns (num_layers, batch, seq_len, hidden_size), with a prenet one more, for (batch, seq_len, mel_dim).
        """
        return self._encode_padded(frames)[0]

    def _encode_padded(self, frames: torch.Tensor, state: State = ()) -> tuple[torch.Tensor, State]:
        outputs, state = self.encode(frames.transpose(0, 1), state=state)  # of (seq_len, batch, hidden_size)
        return torch.stack(outputs).transpose(1, 2), state

    def _check_stream(self, frames: torch.Tensor, state: tuple[torch.Tensor, ...] | None) -> None:
        if self.training:
            raise InputError("stream() is for a model in eval mode: call model.eval() first")
        batch, num_frames = self._check_inputs(frames)
        if batch == 0 or num_frames == 0:
            raise InputError(f"an empty stream chunk: {num_frames} frames of {batch} streams")
        if state is None:
            return
        if not isinstance(state, tuple) or not all(isinstance(part, torch.Tensor) for part in state):
            raise InputError(f"the state of a stream is the tuple of tensors that stream() returned, not {type(state)}")
        names = ["h", "c"] if self.rnn_config.rnn_type == "lstm" else ["h"]
        wanted = (len(self.rnns), batch, self.rnn_config.hidden_size)
        shapes = [tuple(part.shape) for part in state]
        if shapes != [wanted] * len(names):
            held = ", ".join(map(str, shapes)) or "nothing"
            needed = f"({', '.join(names)}) of {wanted}: is it of another batch size or model?"
            raise InputError(f"the state holds {held}, but this model and batch need {needed}")

    def _to_weights(self, inputs: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Frames as a tensor of the weights' precision; those of NumPy also on their device."""
        weights = self.rnns[0].weight_hh_l0
        is_array, inputs = isinstance(inputs, np.ndarray), torch.as_tensor(inputs)
        is_left = torch.is_autocast_enabled(weights.device.type) and inputs.dtype != torch.float64
        if inputs.is_floating_point() and not is_left:  # to autocast
            inputs = inputs.to(weights.dtype)
        return inputs.to(weights.device) if is_array else inputs

    def _check_inputs(self, inputs: torch.Tensor) -> tuple[int, int]:
        """The (batch, seq_len) of a padded batch, or a ValueError that names the sizes."""
        if inputs.dim() != 3 or inputs.size(-1) != self.mel_dim:
            shape = tuple(inputs.shape)
            raise InputError(f"inputs have shape {shape} but the model reads (batch, seq_len, {self.mel_dim})")
        return inputs.size(0), inputs.size(1)

    def encode(
        self,
        frames: torch.Tensor,
        packing: Packing | None = None,
        state: State = (),
        layers: Sequence[int] | None = None,
    ) -> tuple[list[torch.Tensor], State]:
        """Run the layers over the next frames of each sequence.

        Args:
            frames: packed, (frames, mel_dim); without a packing (seq_len, batch, mel_dim).
            packing: the order of packed frames.
            state: the state before the first frames, as `stream` returns it; empty for zeros.
            layers: the layers of `feats` to return, not negative; None for all. Layers above them are not computed.

        Returns:
            outputs: of each of these layers, in ascending order; shaped as frames, with hidden_size for mel_dim.
            state: after the last frames, of the recurrent layers that were computed.
        """
        layers = range(self.num_feats) if layers is None else layers
        first_rnn = self.num_feats - len(self.rnns)
        outputs, states = [], []
        for layer in range(max(layers) + 1):
            if layer < first_rnn:
                frames = self.prenet(frames)
            else:
                number = layer - first_rnn
                frames, after = self._recur(number, frames, packing, tuple(part[number] for part in state))
                states.append(after)
            if layer in layers:
                outputs.append(frames)
        return outputs, tuple(torch.stack(parts) for parts in zip(*states, strict=True))

    def _recur(
        self, number: int, frames: torch.Tensor, packing: Packing | None, state: State
    ) -> tuple[torch.Tensor, State]:
        """Run a recurrent layer, then dropout and the residual connection."""
        config = self.rnn_config
        output, state = run_layer(self.rnns[number], frames, packing, state)
        if number < len(self.rnns) - 1:
            output = F.dropout(output, config.dropout, self.training)
        if config.residual and number >= config.first_residual_layer and frames.size(-1) == output.size(-1):
            output = output + frames
        return output, state

    def predict(self, frames: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Packed frames (frames, mel_dim) to packed predictions (frames, mel_dim): all that training needs.

        Raises:
            InputError: the model has no prediction layer.
        """
        if self.postnet is None:
            raise InputError("the model has no prediction layer (postnet) and computes features only")
        (last,), _ = self.encode(frames, packing, layers=[self.num_feats - 1])
        return self.postnet(last)


def _check_configs(mel_dim: int, prenet: PrenetConfig | None, rnn: RNNConfig) -> None:
    if rnn.rnn_type not in RNN_TYPES:
        raise InputError(f"rnn_type is {rnn.rnn_type!r}, not one of {', '.join(RNN_TYPES)}")
    if prenet is not None and not prenet.hidden_size == rnn.input_size == rnn.hidden_size:
        sizes = f"prenet hidden_size {prenet.hidden_size}, rnn input_size {rnn.input_size}"
        raise InputError(f"{sizes} and rnn hidden_size {rnn.hidden_size} must be the same")
    configs = {"rnn": rnn} if prenet is None else {"prenet": prenet, "rnn": rnn}
    name, first = next(iter(configs.items()))
    if first.input_size != mel_dim:
        raise InputError(f"{name} input_size is {first.input_size} but mel_dim is {mel_dim}")
    if mel_dim < 1:
        raise InputError(f"mel_dim is {mel_dim}, not a positive number")
    for name, config in configs.items():
        for field in ("hidden_size", "num_layers"):
            if getattr(config, field) < 1:
                raise InputError(f"{name} {field} is {getattr(config, field)}, not a positive number")
        if not 0 <= config.dropout < 1:
            raise InputError(f"{name} dropout is {config.dropout}, not in [0, 1)")
