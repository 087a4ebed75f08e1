"""One recurrent layer, run by the implementation that suits its input."""

import torch
from torch import Tensor, nn

from utils.rnn.packed_rnn import packed_rnn
from utils.rnn.packing import Packing
from utils.rnn.products import FEW_ROWS, linear_in_parts

State = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM; empty for zeros


def run_layer(
    rnn: nn.GRU | nn.LSTM, frames: Tensor, packing: Packing | None = None, state: State = ()
) -> tuple[Tensor, State]:
    """Run a layer over the next frames of each sequence.

    Args:
        rnn: one layer, one direction, with biases, not batch_first.
        frames: packed, (frames, input_size); without a packing (seq_len, batch, input_size).
        packing: the order of packed frames.
        state: the state before the first frames, (batch, hidden_size) each; empty for zeros.

    Returns:
        The outputs, in the form of frames with hidden_size columns, and the state after each sequence's last frame.
    """
    is_lstm = isinstance(rnn, nn.LSTM)
    if state and packing is None and len(frames) == 1:
        state = _step(rnn, frames[0], state)
        return state[0].unsqueeze(0), state
    hx = tuple(part.contiguous().unsqueeze(0) for part in state) or None  # as cuDNN wants it
    if hx and not is_lstm:
        hx = hx[0]
    if packing is None:
        output, hx = rnn(frames, hx)
    else:
        packed, hx = packed_rnn(rnn, packing.sequence(frames), hx)
        output = packed.data
    return output, tuple(part.squeeze(0) for part in (hx if is_lstm else (hx,)))


def _step(rnn: nn.GRU | nn.LSTM, x: Tensor, state: State) -> State:
    """The state after one frame of each sequence, x (batch, input_size), given the state before it."""
    weights = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0
    if x.device.type != "cpu" or len(x) > FEW_ROWS:
        # oneDNN, which runs a whole LSTM on a CPU, reorders the weights at every call: three times the work of a step
        state = torch.lstm_cell(x, state, *weights) if len(state) == 2 else (torch.gru_cell(x, state[0], *weights),)
        return tuple(state)
    with torch.autocast("cpu", enabled=False):  # as in packed_rnn: a step computes in the type of the weights
        x, *state = (values.to(weights[0].dtype) for values in (x, *state))
        return _step_of_few(weights, x, tuple(state))


def _step_of_few(weights: tuple[Tensor, ...], x: Tensor, state: State) -> State:
    """As `_step`, of few sequences on a CPU."""
    w_ih, w_hh, b_ih, b_hh = weights
    inputs, recurrent = linear_in_parts(x, w_ih, b_ih), linear_in_parts(state[0], w_hh, b_hh)
    if len(state) == 2:
        i, f, g, o = (inputs + recurrent).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c
    size = 2 * w_hh.size(1)
    r, z = (inputs + recurrent)[:, :size].sigmoid().chunk(2, 1)
    n = torch.addcmul(inputs[:, size:], r, recurrent[:, size:]).tanh()
    return (torch.lerp(n, state[0], z),)
