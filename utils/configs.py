"""The sizes of a model, under the field names of the released code."""

from typing import NamedTuple

RNN_TYPES = ("gru", "lstm")


class PrenetConfig(NamedTuple):
    """Feed-forward layers between the log-Mel frames and the recurrent stack.

    Attributes:
        input_size: mel_dim, the size of a frame.
        hidden_size: size of every layer; must equal the RNN's input and hidden size.
        num_layers: number of [Linear, ReLU, Dropout] blocks.
        dropout: probability of zeroing a unit after each ReLU, in training.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float


class RNNConfig(NamedTuple):
    """The recurrent stack.

    Attributes:
        input_size: size of what enters the first layer (mel_dim, or the prenet's hidden size).
        hidden_size: hidden size of every layer.
        num_layers: number of layers, each a single-layer nn.GRU or nn.LSTM.
        dropout: probability of zeroing a unit of every layer's output but the last, in training.
        residual: whether a layer's input is added to its output where the two sizes agree.
        rnn_type: 'gru' or 'lstm'.
        first_residual_layer: the first layer that may have a residual connection (s3prl's models start at 1).
    """

    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float
    residual: bool
    rnn_type: str = "gru"
    first_residual_layer: int = 0
