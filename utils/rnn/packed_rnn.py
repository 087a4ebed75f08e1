"""A GRU or LSTM layer over packed sequences whose cost on a CPU is linear in their length.

PyTorch's CPU kernel for a packed sequence takes a slice of the packed data at every time step, and the backward of
every slice fills a gradient of the whole sequence, so a training step is quadratic in length (pytorch issue 149194).
Here the backward is written by hand, once for the whole layer:

- Time steps are handled in blocks of about FRAMES_PER_BLOCK frames, small enough to stay in cache. What does not
  depend on the recurrence is one operation a block: the input projection before the time loop; in the backward the
  derivatives of the gates before it, and the gradients of weights and inputs after it.
- A step of the loop is one small matrix product and a few element-wise operations. The products are those of
  utils/rnn/products.py.

Parameters stay in nn.GRU and nn.LSTM, so checkpoints do not change, and a GPU keeps cuDNN. In the comments on shapes,
frames are the rows of PackedSequence.data, batch the sequences still running at a step, and chunks the column shares
of the recurrent product, each hidden / chunks wide.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from utils.rnn.cells import GRUCell, LSTMCell
from utils.rnn.products import BF16Products, Products, choose_products, chunked

FRAMES_PER_BLOCK = 512  # enough for a fast matrix product, few enough for the gates of a block to stay in cache


def packed_rnn(
    rnn: nn.GRU | nn.LSTM, packed: PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
) -> tuple[PackedSequence, Tensor | tuple[Tensor, Tensor]]:
    """Compute `rnn(packed, hx)`: packed outputs (frames, hidden_size), and the final state in the form of hx.

    Args:
        rnn: one layer, one direction, with biases, in float32 or float64 on a CPU is computed here; any other is
            called. Under autocast to bfloat16 a float32 layer multiplies in bfloat16 where the CPU has such products,
            and keeps gates, states and weights in float32; under any other it computes in the type of its weights.
        packed: data (frames, input_size).
        hx: the initial state (1, batch, hidden_size) of a GRU, a pair of them for an LSTM; zeros if None.
    """
    if packed.data.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            return _packed_rnn(rnn, packed._replace(data=packed.data.to(rnn.weight_hh_l0.dtype)), hx, bf16)
    return _packed_rnn(rnn, packed, hx, False)


def _packed_rnn(rnn, packed, hx, bf16):
    if not _is_supported(rnn, packed.data):
        return rnn(packed, hx)
    data, batch_sizes, order, inverse = packed
    cell, sizes = GRUCell if isinstance(rnn, nn.GRU) else LSTMCell, batch_sizes.tolist()
    if hx is None:
        state = [data.new_zeros(sizes[0], rnn.hidden_size)] * cell.num_states  # each (batch, hidden)
    else:
        rnn.check_forward_args(data, hx, batch_sizes)
        state = [hx[0]] if cell is GRUCell else [hx[0][0], hx[1][0]]
        if order is not None:
            state = [part.index_select(0, order) for part in state]
    tensors = (data, rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0, *state)
    products = choose_products(data.dtype, bf16)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if sizes[0] == sizes[-1] and _suits_whole_layer(rnn, products, is_single_row=sizes[0] == 1 and not needs_grad):
        output, state = _whole_layer(rnn, data.unflatten(0, (len(sizes), -1)), state)
    elif needs_grad:
        output, *state = _PackedRNN.apply(cell, sizes, products, *tensors)
    else:
        output, state, _ = _forward(cell, sizes, products, *tensors, keep_gates=False)
    if inverse is not None:
        state = [part.index_select(0, inverse) for part in state]
    state = tuple(part.unsqueeze(0) for part in state)
    return packed._replace(data=output), state[0] if cell is GRUCell else state


def _is_supported(rnn: nn.RNNBase, data: Tensor) -> bool:
    return (
        isinstance(rnn, nn.GRU | nn.LSTM)
        and (rnn.num_layers, rnn.bidirectional, rnn.bias, rnn.proj_size) == (1, False, True, 0)
        and data.device.type == rnn.weight_hh_l0.device.type == "cpu"
        and data.dtype == rnn.weight_hh_l0.dtype
        and data.dtype in (torch.float32, torch.float64)
        and data.size(1) == rnn.input_size
    )


def _suits_whole_layer(rnn: nn.RNNBase, products: Products, is_single_row: bool) -> bool:
    """Whether PyTorch's layer is faster for sequences of one length: an LSTM by oneDNN, or products of single rows."""
    is_onednn = isinstance(rnn, nn.LSTM) and rnn.weight_hh_l0.dtype == torch.float32
    is_onednn = is_onednn and torch.backends.mkldnn.is_available()
    return not isinstance(products, BF16Products) and (is_onednn or is_single_row)


def _whole_layer(rnn: nn.RNNBase, frames: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Call a layer on (seq_len, batch, input_size) from states (batch, hidden): outputs (frames, hidden) and states."""
    hx = [part.unsqueeze(0) for part in state]
    if rnn.batch_first:
        frames = frames.transpose(0, 1)
    output, hx = rnn(frames, tuple(hx) if isinstance(rnn, nn.LSTM) else hx[0])
    if rnn.batch_first:
        output = output.transpose(0, 1)
    return output.flatten(0, 1), [part.squeeze(0) for part in (hx if isinstance(rnn, nn.LSTM) else [hx])]


class _Block(NamedTuple):
    """A run of time steps that are processed together."""

    sizes: list[int]  # sequences still running at each step
    rows: slice  # its frames
    num_frames: int
    size_before: int  # sequences running at the step before its first; 0 at the start


def _blocks(sizes: list[int]) -> list[_Block]:
    """Cut the time steps into blocks of about FRAMES_PER_BLOCK frames."""
    blocks, first, start, stop = [], 0, 0, 0
    for step, size in enumerate(sizes, start=1):
        stop += size
        if stop - start >= FRAMES_PER_BLOCK or step == len(sizes):
            before = sizes[first - 1] if first else 0
            blocks.append(_Block(sizes[first:step], slice(start, stop), stop - start, before))
            first, start = step, stop
    return blocks


def _forward(cell, sizes, products, data, w_ih, w_hh, b_ih, b_hh, *state, keep_gates):
    """Compute output (frames, hidden), the final states (batch, hidden), and the gates if keep_gates."""
    hidden, blocks = w_hh.size(1), _blocks(sizes)
    output = data.new_empty(data.size(0), hidden)
    num_rows = data.size(0) if keep_gates else max(block.num_frames for block in blocks)
    buffer = data.new_empty(num_rows, cell.num_columns * hidden)
    final = [torch.empty_like(part) for part in state]
    w_in, w_rec, bias = cell.arrange(w_ih, w_hh, b_ih, b_hh)
    w_in, step_product = products.prepare(w_in), products.by_step(w_rec, sizes[0])
    for block in blocks:
        gates = buffer[block.rows] if keep_gates else buffer[: block.num_frames]
        gates[:, : bias.size(0)] = bias
        products.add_product(cell.split(gates, hidden)[0], products.operand(data[block.rows]), w_in)
        state = cell.steps(block.sizes, gates, output[block.rows], state, final, step_product)
    for part, last in zip(final, state, strict=True):
        part[: sizes[-1]] = last
    return output, final, buffer


class _PackedRNN(torch.autograd.Function):
    """(cell, sizes, products, data, w_ih, w_hh, b_ih, b_hh, *state) -> output (frames, hidden), *final state."""

    @staticmethod
    def forward(ctx, cell, sizes: list[int], products: Products, *tensors: Tensor) -> tuple[Tensor, ...]:
        output, final, gates = _forward(cell, sizes, products, *tensors, keep_gates=True)
        ctx.cell, ctx.sizes, ctx.products = cell, sizes, products
        ctx.save_for_backward(output, gates, *tensors)
        return output, *final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output: Tensor, *d_final: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the inputs from those of output and of the final states (batch, hidden)."""
        with torch.autocast("cpu", enabled=False):
            return None, None, None, *_backward(ctx, d_output, d_final)


def _backward(ctx, d_output, d_final):
    cell, products = ctx.cell, ctx.products
    output, gates, data, w_ih, w_hh, b_ih, b_hh, *initial = ctx.saved_tensors
    w_in, w_rec, _ = cell.arrange(w_ih, w_hh, b_ih, b_hh)
    hidden, needs, blocks = w_rec.size(1), ctx.needs_input_grad[3:], _blocks(ctx.sizes)
    d_data = torch.empty_like(data) if needs[0] else None
    d_w_in = torch.zeros_like(w_in) if needs[1] else None
    d_w_rec = torch.zeros_like(w_rec) if needs[2] else None
    d_bias = data.new_zeros(gates.size(1))
    w_in, step_product = products.prepare(w_in.t()), products.by_step(w_rec.t(), ctx.sizes[0])
    d_final = [chunked(part, step_product.chunks) for part in d_final]  # each (chunks, batch, hidden / chunks)
    d_state = [part[:, :0] for part in d_final]
    buffer = data.new_empty(max(block.num_frames for block in blocks), gates.size(1))
    for block in reversed(blocks):
        rows, d_gates = block.rows, buffer[: block.num_frames]
        states = zip(cell.states(output, gates), initial, strict=True)
        previous = [_previous(block, values, first) for values, first in states]
        cell.derivatives(gates[rows], *previous, out=d_gates)
        d_state = cell.steps_backward(block.sizes, gates[rows], d_gates, d_output[rows], d_state, d_final, step_product)
        d_in, d_rec = cell.split(products.operand(d_gates), hidden)
        if needs[0]:
            d_data[rows] = products.multiply(d_in, w_in)
        if needs[1]:
            products.add_outer(d_w_in, d_in, products.operand(data[rows]))
        if needs[2]:
            products.add_outer(d_w_rec, d_rec, products.operand(previous[0]))
        if needs[3] or needs[4]:
            d_bias += d_gates.sum(0)
    d_initial = [part.transpose(0, 1).flatten(1) for part in d_state]  # each (batch, hidden)
    return d_data, *cell.restore(d_w_in, d_w_rec, d_bias), *d_initial


def _previous(block: _Block, values: Tensor, initial: Tensor) -> Tensor:
    """Gather the state before every frame of a block, from values (frames, hidden) and initial (batch, hidden)."""
    start, before = block.rows.start - block.size_before, block.size_before
    if before == block.sizes[-1]:  # no sequence ends in this block: its frames' predecessors are one run
        return values[start : start + block.num_frames]
    pieces = []
    for size in block.sizes:
        pieces.append(values[start : start + size] if before else initial)
        start, before = start + before, size
    return torch.cat(pieces)
