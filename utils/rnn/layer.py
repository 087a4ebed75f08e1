"""One recurrent layer, run by the implementation that suits its input."""

import torch
from torch import Tensor, nn

from utils.rnn.packed_rnn import packed_rnn
from utils.rnn.packing import Packing

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
        # oneDNN, which runs a whole LSTM on a CPU, reorders the weights at every call: three times the work of a step
        weights = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0
        run_step = torch.lstm_cell if is_lstm else torch.gru_cell
        state = run_step(frames[0], state if is_lstm else state[0], *weights)
        state = state if is_lstm else (state,)
        return state[0].unsqueeze(0), state
    hx = tuple(part.unsqueeze(0) for part in state) or None
    if hx and not is_lstm:
        hx = hx[0]
    if packing is None:
        output, hx = rnn(frames, hx)
    else:
        packed, hx = packed_rnn(rnn, packing.sequence(frames), hx)
        output = packed.data
    return output, tuple(part.squeeze(0) for part in (hx if is_lstm else (hx,)))
