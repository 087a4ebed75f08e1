"""The sizes of a model, under the field names of the released code; and how it names its checkpoints."""

import re
from typing import NamedTuple

RNN_GATES = {"gru": 3, "lstm": 4}  # weight_hh_l0 of a cell is (gates * hidden_size, hidden_size)
RNN_TYPES = tuple(RNN_GATES)
# bs32-rhl3-rhs512-rd0-adam-res-ts3.pt: batch size, layers, hidden size, dropout, optimizer, residual, time shift
RELEASED_NAME = re.compile(r"bs\d+-rhl\d+-rhs\d+-rd[\d.]+-\w+(?P<residual>-res)?-ts(?P<time_shift>\d+)")


class PrenetConfig(NamedTuple):
    """Feed-forward layers between the log-Mel frames and the recurrent stack: num_layers x [Linear, ReLU, Dropout]."""

    input_size: int  # mel_dim, the size of a frame
    hidden_size: int  # of every layer; must equal the RNN's input and hidden size
    num_layers: int
    dropout: float  # probability of zeroing a unit after each ReLU, in training


class RNNConfig(NamedTuple):
    """The recurrent stack: num_layers single-layer nn.GRU or nn.LSTM."""

    input_size: int  # of the first layer: mel_dim, or the prenet's hidden size
    hidden_size: int  # of every layer
    num_layers: int
    dropout: float  # probability of zeroing a unit of every layer's output but the last, in training
    residual: bool  # whether a layer's input is added to its output where the two sizes agree
    rnn_type: str = "gru"  # or 'lstm'
    first_residual_layer: int = 0  # the first layer that may have a residual connection; 1 in s3prl's models
