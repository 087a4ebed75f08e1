"""A GRU or LSTM layer over packed sequences whose cost on a CPU is linear in their length.

PyTorch's CPU kernel for a packed sequence takes a slice of the packed data at every time step, and the backward
of every slice fills a gradient of the whole sequence, so a training step is quadratic in length (pytorch issue
149194). Here the backward is written by hand, once for the whole layer:

- Time steps are handled in blocks of about a thousand frames, small enough to stay in cache. What does not
  depend on the recurrence is one operation a block: the input projection before the time loop; in the backward
  the derivatives of the gates before it, and the gradients of weights and inputs after it.
- The loop over time is left with one small matrix product and a handful of element-wise operations a step. The
  product is a batch of as many products as there are threads, each with its own contiguous share of the weight's
  columns and of the result: on MKL this takes two thirds of the time of one product (which splits its rows badly,
  as does a batch that writes into a view), and less than half of that of one with a transposed weight.

Parameters stay in nn.GRU and nn.LSTM, so checkpoints do not change, and a GPU keeps cuDNN.

In the comments on shapes, frames are the rows of PackedSequence.data, batch the sequences still running at a
step, and chunks the column shares of the recurrent product, each hidden / chunks wide.
"""

import contextlib
import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

aten = torch.ops.aten

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

FRAMES_PER_BLOCK = 1024  # enough for a fast matrix product, few enough for the gates of a block to stay in cache


def packed_rnn(
    rnn: nn.GRU | nn.LSTM, packed: PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
) -> tuple[PackedSequence, Tensor | tuple[Tensor, Tensor]]:
    """Does what `rnn(packed, hx)` does, fast on a CPU in training and in inference.

    Args:
        rnn: one layer, one direction, with biases, float32 or float64 on a CPU is done here; any other is called.
        packed: data (frames, input_size).
        hx: the initial state (1, batch, hidden_size) of a GRU, a pair of them for an LSTM; zeros if None.

    Returns:
        The packed outputs (frames, hidden_size), and the final state in the form of hx.
    """
    if not _is_supported(rnn, packed.data):
        return rnn(packed, hx)
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    cell = _GRUCell if isinstance(rnn, nn.GRU) else _LSTMCell
    sizes = batch_sizes.tolist()
    if hx is None:
        state = [data.new_zeros(sizes[0], rnn.hidden_size)] * cell.num_states  # each (batch, hidden)
    else:
        rnn.check_forward_args(data, hx, batch_sizes)
        state = [hx[0]] if cell is _GRUCell else [hx[0][0], hx[1][0]]
        if sorted_indices is not None:
            state = [part.index_select(0, sorted_indices) for part in state]

    tensors = (data, rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0, *state)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        output, *state = _PackedRNN.apply(cell, sizes, *tensors)
    else:
        output, state, _ = _forward(cell, sizes, *tensors, keep_gates=False)

    if unsorted_indices is not None:
        state = [part.index_select(0, unsorted_indices) for part in state]
    state = [part.unsqueeze(0) for part in state]
    packed_output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    return packed_output, state[0] if cell is _GRUCell else tuple(state)


def _is_supported(rnn: nn.RNNBase, data: Tensor) -> bool:
    return (
        isinstance(rnn, nn.GRU | nn.LSTM)
        and (rnn.num_layers, rnn.bidirectional, rnn.bias, rnn.proj_size) == (1, False, True, 0)
        and data.device.type == rnn.weight_hh_l0.device.type == "cpu"
        and data.dtype == rnn.weight_hh_l0.dtype
        and data.dtype in (torch.float32, torch.float64)
        and data.size(1) == rnn.input_size
        and not torch.is_autocast_enabled("cpu")
    )


class _GRUCell:
    """Gates lie in columns n, r, z, hn, with n = tanh(n's part of x + r * hn) and h = (1 - z) * n + z * h_prev.

    The input's product fills the first three, the recurrent product the last three.
    """

    num_states, num_columns = 1, 4

    @staticmethod
    def arrange(w_ih, w_hh, b_ih, b_hh):
        """Brings parameters into the order of the gates; the two biases into one of (4 * hidden,)."""
        hidden = w_hh.size(1)
        b_ih = b_ih.roll(hidden)
        bias = torch.cat([b_ih[:hidden], b_ih[hidden:] + b_hh[: 2 * hidden], b_hh[2 * hidden :]])
        return w_ih.roll(hidden, 0), w_hh, bias

    @staticmethod
    def restore(d_w_in, d_w_rec, d_bias):
        """Brings gradients back into the order of the parameters."""
        hidden = d_bias.size(0) // 4
        d_w_ih = None if d_w_in is None else d_w_in.roll(-hidden, 0)
        return d_w_ih, d_w_rec, d_bias[: 3 * hidden].roll(-hidden), d_bias[hidden:].clone()

    @staticmethod
    def split(gates: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
        """Returns the columns of the input's product, and those of the recurrent product."""
        return gates[:, : 3 * hidden], gates[:, hidden : 4 * hidden]

    @staticmethod
    def states(output: Tensor, gates: Tensor) -> list[Tensor]:
        return [output]

    @staticmethod
    def steps(sizes, gates, output, state, final, w_rec):
        """Runs the time steps of a block: fills gates (frames, 4 * hidden) and output (frames, hidden).

        Gates hold the input's part. w_rec is (chunks, hidden, 3 * hidden / chunks). State is (batch, hidden) before
        the block, and the state after it is returned; that of sequences that end goes into final (batch, hidden).
        """
        hidden, chunks = output.size(1), w_rec.size(0)
        n, r, z, hn = (column.split(sizes) for column in gates.split(hidden, 1))
        rz = gates[:, hidden : 3 * hidden].split(sizes)
        recurrent = _chunked(gates[:, hidden:], chunks).split(sizes, 1)
        (h,) = state
        for t, (size, h_next) in enumerate(zip(sizes, output.split(sizes), strict=True)):
            h = _end(h, size, final[0])
            recurrent[t].add_(torch.bmm(h.expand(chunks, size, hidden), w_rec))
            rz[t].sigmoid_()
            torch.addcmul(n[t], r[t], hn[t], out=n[t]).tanh_()
            h = torch.lerp(n[t], h, z[t], out=h_next)
        return [h]

    @staticmethod
    def derivatives(gates, h_prev, out):
        """Fills out (frames, 4 * hidden) with the derivatives of h by what enters n, r, z and hn."""
        hidden = h_prev.size(1)
        n, r, z, hn = gates.split(hidden, 1)
        by_n, by_r, by_z, by_hn = out.split(hidden, 1)
        aten.tanh_backward(1 - z, n, grad_input=by_n)
        torch.mul(by_n, r, out=by_hn)
        aten.sigmoid_backward(by_n * hn, r, grad_input=by_r)
        aten.sigmoid_backward(h_prev - n, z, grad_input=by_z)

    @staticmethod
    def steps_backward(sizes, gates, d_gates, d_output, d_state, d_final, w_rec):
        """Multiplies the derivatives in d_gates by the gradient of h, from the last step to the first.

        w_rec is (chunks, 3 * hidden, hidden / chunks). d_state is (chunks, batch, hidden / chunks) after the block,
        and that before it is returned; d_final has that of the final state of every sequence.
        """
        hidden, chunks = d_output.size(1), w_rec.size(0)
        z = _chunked(gates[:, 2 * hidden : 3 * hidden], chunks).split(sizes, 1)
        d_columns = _chunked_columns(d_gates, 4, chunks).split(sizes, 1)
        d_rec = d_gates[:, hidden:].expand(chunks, -1, -1).split(sizes, 1)
        d_output = _chunked(d_output, chunks).split(sizes, 1)
        (d_h,) = d_state  # (chunks, batch, hidden / chunks)
        for t in reversed(range(len(sizes))):
            d_h = _begin(d_h, sizes[t], d_final[0]).add_(d_output[t])
            d_columns[t].mul_(d_h.unsqueeze(2))
            d_h = torch.bmm(d_rec[t], w_rec).addcmul_(d_h, z[t])
        return [d_h]


class _LSTMCell:
    """Gates lie in columns o, i, f, g, and behind them the cell c = f * c_prev + i * g; h = o * tanh(c)."""

    num_states, num_columns = 2, 5

    @staticmethod
    def arrange(w_ih, w_hh, b_ih, b_hh):
        hidden = w_hh.size(1)
        return w_ih.roll(hidden, 0), w_hh.roll(hidden, 0), (b_ih + b_hh).roll(hidden)

    @staticmethod
    def restore(d_w_in, d_w_rec, d_bias):
        hidden = d_bias.size(0) // 5
        d_w_ih, d_w_hh = (None if d_w is None else d_w.roll(-hidden, 0) for d_w in (d_w_in, d_w_rec))
        d_b = d_bias[: 4 * hidden].roll(-hidden)
        return d_w_ih, d_w_hh, d_b, d_b.clone()

    @staticmethod
    def split(gates: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
        return gates[:, : 4 * hidden], gates[:, : 4 * hidden]

    @staticmethod
    def states(output: Tensor, gates: Tensor) -> list[Tensor]:
        return [output, gates[:, 4 * output.size(1) :]]

    @staticmethod
    def steps(sizes, gates, output, state, final, w_rec):
        """As of a GRU, but for gates (frames, 5 * hidden) and w_rec (chunks, hidden, 4 * hidden / chunks)."""
        hidden, chunks = output.size(1), w_rec.size(0)
        o, i, f, g, c_next = (column.split(sizes) for column in gates.split(hidden, 1))
        oif = gates[:, : 3 * hidden].split(sizes)
        recurrent = _chunked(gates[:, : 4 * hidden], chunks).split(sizes, 1)
        h, c = state  # each (batch, hidden)
        for t, (size, h_next) in enumerate(zip(sizes, output.split(sizes), strict=True)):
            h, c = _end(h, size, final[0]), _end(c, size, final[1])
            recurrent[t].add_(torch.bmm(h.expand(chunks, size, hidden), w_rec))
            oif[t].sigmoid_()
            g[t].tanh_()
            c = torch.mul(f[t], c, out=c_next[t]).addcmul_(i[t], g[t])
            h = torch.tanh(c, out=h_next).mul_(o[t])
        return [h, c]

    @staticmethod
    def derivatives(gates, h_prev, c_prev, out):
        """Fills out (frames, 5 * hidden) with the derivatives of h by o, of c by i, f, g, and of h by c."""
        hidden = h_prev.size(1)
        o, i, f, g, c = gates.split(hidden, 1)
        by_o, by_i, by_f, by_g, by_c = out.split(hidden, 1)
        tanh_c = torch.tanh(c)
        aten.sigmoid_backward(tanh_c, o, grad_input=by_o)
        aten.sigmoid_backward(g, i, grad_input=by_i)
        aten.sigmoid_backward(c_prev, f, grad_input=by_f)
        aten.tanh_backward(i, g, grad_input=by_g)
        aten.tanh_backward(o, tanh_c, grad_input=by_c)

    @staticmethod
    def steps_backward(sizes, gates, d_gates, d_output, d_state, d_final, w_rec):
        """As of a GRU, with the gradients of both h and c in d_state and d_final."""
        hidden, chunks = d_output.size(1), w_rec.size(0)
        f = _chunked(gates[:, 2 * hidden : 3 * hidden], chunks).split(sizes, 1)
        d_columns = _chunked_columns(d_gates, 5, chunks)
        d_o, h_by_c = d_columns[:, :, 0].split(sizes, 1), d_columns[:, :, 4].split(sizes, 1)
        d_ifg = d_columns[:, :, 1:4].split(sizes, 1)
        d_rec = d_gates[:, : 4 * hidden].expand(chunks, -1, -1).split(sizes, 1)
        d_output = _chunked(d_output, chunks).split(sizes, 1)
        d_h, d_c = d_state  # each (chunks, batch, hidden / chunks)
        for t in reversed(range(len(sizes))):
            d_h = _begin(d_h, sizes[t], d_final[0]).add_(d_output[t])
            d_c = _begin(d_c, sizes[t], d_final[1]).addcmul_(d_h, h_by_c[t])
            d_o[t].mul_(d_h)
            d_ifg[t].mul_(d_c.unsqueeze(2))
            d_c.mul_(f[t])
            d_h = torch.bmm(d_rec[t], w_rec)
        return [d_h, d_c]


class _Block(NamedTuple):
    """A run of time steps that are handled together."""

    sizes: list[int]  # sequences still running at each step
    rows: slice  # where its frames lie
    num_frames: int
    size_before: int  # sequences running at the step before its first; 0 at the start


def _blocks(sizes: list[int]) -> list[_Block]:
    """Cuts the time steps into blocks of about FRAMES_PER_BLOCK frames."""
    blocks, first, start, stop = [], 0, 0, 0
    for step, size in enumerate(sizes, start=1):
        stop += size
        if stop - start >= FRAMES_PER_BLOCK or step == len(sizes):
            before = sizes[first - 1] if first else 0
            blocks.append(_Block(sizes[first:step], slice(start, stop), stop - start, before))
            first, start = step, stop
    return blocks


def _forward(cell, sizes, data, w_ih, w_hh, b_ih, b_hh, *state, keep_gates):
    """Returns output (frames, hidden), the final state, each (batch, hidden), and the gates if they are kept."""
    hidden, blocks = w_hh.size(1), _blocks(sizes)
    output = data.new_empty(data.size(0), hidden)
    num_rows = data.size(0) if keep_gates else max(block.num_frames for block in blocks)
    buffer = data.new_empty(num_rows, cell.num_columns * hidden)
    final = [torch.empty_like(part) for part in state]
    w_in, w_rec, bias = cell.arrange(w_ih, w_hh, b_ih, b_hh)
    w_in, w_rec = w_in.t().contiguous(), _columns_apart(w_rec.t())
    for block in blocks:
        gates = buffer[block.rows] if keep_gates else buffer[: block.num_frames]
        gates[:, : bias.size(0)] = bias
        cell.split(gates, hidden)[0].addmm_(data[block.rows], w_in)
        state = cell.steps(block.sizes, gates, output[block.rows], state, final, w_rec)
    for part, last in zip(final, state, strict=True):
        part[: sizes[-1]] = last
    return output, final, buffer


class _PackedRNN(torch.autograd.Function):
    """(cell, sizes, data, w_ih, w_hh, b_ih, b_hh, *initial state) -> output (frames, hidden), *final state."""

    @staticmethod
    def forward(ctx, cell, sizes: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        output, final, gates = _forward(cell, sizes, *tensors, keep_gates=True)
        ctx.cell, ctx.sizes = cell, sizes
        ctx.save_for_backward(output, gates, *tensors)
        return output, *final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output: Tensor, *d_final: Tensor) -> tuple[Tensor | None, ...]:
        cell = ctx.cell
        output, gates, data, w_ih, w_hh, b_ih, b_hh, *initial = ctx.saved_tensors
        w_in, w_rec, _ = cell.arrange(w_ih, w_hh, b_ih, b_hh)
        hidden, needs, blocks = w_rec.size(1), ctx.needs_input_grad[2:], _blocks(ctx.sizes)
        d_data = torch.empty_like(data) if needs[0] else None
        d_w_in = torch.zeros_like(w_in) if needs[1] else None
        d_w_rec = torch.zeros_like(w_rec) if needs[2] else None
        d_bias = data.new_zeros(gates.size(1))
        w_rec = _columns_apart(w_rec)  # (chunks, columns of the recurrent product, hidden / chunks)
        d_final = [_columns_apart(part) for part in d_final]  # each (chunks, batch, hidden / chunks)
        d_state = [part[:, :0] for part in d_final]
        buffer = data.new_empty(max(block.num_frames for block in blocks), gates.size(1))
        for block in reversed(blocks):
            rows, d_gates = block.rows, buffer[: block.num_frames]
            states = zip(cell.states(output, gates), initial, strict=True)
            previous = [_previous(block, values, first) for values, first in states]
            cell.derivatives(gates[rows], *previous, out=d_gates)
            d_state = cell.steps_backward(block.sizes, gates[rows], d_gates, d_output[rows], d_state, d_final, w_rec)
            d_in, d_rec = cell.split(d_gates, hidden)
            if needs[0]:
                torch.mm(d_in, w_in, out=d_data[rows])
            if needs[1]:
                d_w_in.addmm_(d_in.t(), data[rows])
            if needs[2]:
                d_w_rec.addmm_(d_rec.t(), previous[0])
            if needs[3] or needs[4]:
                d_bias += d_gates.sum(0)
        d_initial = [part.transpose(0, 1).flatten(1) for part in d_state]  # each (batch, hidden)
        return None, None, d_data, *cell.restore(d_w_in, d_w_rec, d_bias), *d_initial


def _previous(block: _Block, values: Tensor, initial: Tensor) -> Tensor:
    """Returns the state before every frame of a block, from values (frames, hidden) and initial (batch, hidden)."""
    start, before = block.rows.start - block.size_before, block.size_before
    if before == block.sizes[-1]:  # no sequence ends in this block: its frames' predecessors are one run
        return values[start : start + block.num_frames]
    pieces = []
    for size in block.sizes:
        pieces.append(values[start : start + size] if before else initial)
        start, before = start + before, size
    return torch.cat(pieces)


def _end(state: Tensor, size: int, final: Tensor) -> Tensor:
    """Keeps the states (batch, hidden) of the first size sequences; those of sequences that ended go to final."""
    if state.size(0) == size:
        return state
    final[size : state.size(0)] = state[size:]
    return state[:size]


def _begin(d_state: Tensor, size: int, d_final: Tensor) -> Tensor:
    """Adds, going backward, the sequences that end here: the gradient of their state is that of their final one."""
    if d_state.size(1) == size:
        return d_state
    return torch.cat([d_state, d_final[:, d_state.size(1) : size]], 1)


def _chunked(values: Tensor, chunks: int) -> Tensor:
    """Views (frames, columns) as (chunks, frames, columns / chunks)."""
    return values.unflatten(1, (chunks, -1)).transpose(0, 1)


def _chunked_columns(gates: Tensor, num_columns: int, chunks: int) -> Tensor:
    """Views (frames, num_columns * hidden) as (chunks, frames, num_columns, hidden / chunks)."""
    return gates.unflatten(1, (num_columns, chunks, -1)).permute(2, 0, 1, 3)


def _columns_apart(matrix: Tensor) -> Tensor:
    """Copies a share of the columns for every thread: (rows, columns) to (chunks, rows, columns / chunks)."""
    chunks = math.gcd(matrix.size(1), torch.get_num_threads())
    return _chunked(matrix, chunks).contiguous()


def reuse_freed_memory() -> None:
    """Asks the C library to keep the memory that tensors free for the next ones, instead of giving it back.

    By default glibc maps every large tensor anew, and the kernel clears it page by page: at 1600 frames a third of
    the time of a training step. For programs that train or extract; where there is no glibc, nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
