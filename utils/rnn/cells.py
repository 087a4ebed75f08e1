"""The equations of a GRU and an LSTM for packed_rnn (see there for the shapes): loops over time, and derivatives."""

import torch
from torch import Tensor

from utils.rnn.products import StepProduct, chunked

aten = torch.ops.aten


class GRUCell:
    """Columns n, r, z, hn of the gates, with n = tanh(n's part of x + r * hn) and h = (1 - z) * n + z * h_prev.

    The input's product fills the first three, the recurrent product the last three.
    """

    num_states, num_columns = 1, 4

    @staticmethod
    def arrange(w_ih, w_hh, b_ih, b_hh):
        """Bring parameters into the order of the gates; the two biases into one of (4 * hidden,)."""
        hidden = w_hh.size(1)
        b_ih = b_ih.roll(hidden)
        bias = torch.cat([b_ih[:hidden], b_ih[hidden:] + b_hh[: 2 * hidden], b_hh[2 * hidden :]])
        return w_ih.roll(hidden, 0), w_hh, bias

    @staticmethod
    def restore(d_w_in, d_w_rec, d_bias):
        """Bring gradients back into the order of the parameters."""
        hidden = d_bias.size(0) // 4
        d_w_ih = None if d_w_in is None else d_w_in.roll(-hidden, 0)
        return d_w_ih, d_w_rec, d_bias[: 3 * hidden].roll(-hidden), d_bias[hidden:].clone()

    @staticmethod
    def split(gates: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
        """Select the columns of the input's product, and those of the recurrent product."""
        return gates[:, : 3 * hidden], gates[:, hidden : 4 * hidden]

    @staticmethod
    def states(output: Tensor, gates: Tensor) -> list[Tensor]:
        return [output]

    @staticmethod
    def steps(sizes, gates, output, state, final, product: StepProduct):
        """Run the time steps of a block: fill gates (frames, 4 * hidden) and output (frames, hidden).

        Gates hold the input's part; product multiplies by the recurrent weight, (3 * hidden, hidden). State is
        (batch, hidden) before the block, and the state after it is returned; that of sequences that end goes into
        final (batch, hidden).
        """
        hidden = output.size(1)
        n, r, z, hn = (column.split(sizes) for column in gates.split(hidden, 1))
        rz = gates[:, hidden : 3 * hidden].split(sizes)
        recurrent = product.parts(gates[:, hidden:], sizes)
        (h,) = state
        for t, (size, h_next) in enumerate(zip(sizes, output.split(sizes), strict=True)):
            h = _end(h, size, final[0])
            product.add_to(recurrent[t], h)
            rz[t].sigmoid_()
            _tanh_(n[t].addcmul_(r[t], hn[t]))
            h = torch.lerp(n[t], h, z[t], out=h_next)
        return [h]

    @staticmethod
    def derivatives(gates, h_prev, out):
        """Fill out (frames, 4 * hidden) with the derivatives of h by what enters n, r, z and hn."""
        hidden = h_prev.size(1)
        n, r, z, hn = gates.split(hidden, 1)
        by_n, by_r, by_z, by_hn = out.split(hidden, 1)
        aten.tanh_backward(1 - z, n, grad_input=by_n)
        torch.mul(by_n, r, out=by_hn)
        aten.sigmoid_backward(by_n * hn, r, grad_input=by_r)
        aten.sigmoid_backward(h_prev - n, z, grad_input=by_z)

    @staticmethod
    def steps_backward(sizes, gates, d_gates, d_output, d_state, d_final, product: StepProduct):
        """Multiply the derivatives in d_gates by the gradient of h, from the last step to the first.

        The product multiplies by the transposed recurrent weight, (hidden, 3 * hidden). d_state is (chunks, batch,
        hidden / chunks) after the block, and that before it is returned; d_final has that of the final state of every
        sequence.
        """
        hidden, chunks = d_output.size(1), product.chunks
        z = chunked(gates[:, 2 * hidden : 3 * hidden], chunks).split(sizes, 1)
        d_nr, d_zh = (_chunked_columns(part, 2, chunks).split(sizes, 1) for part in d_gates.split(2 * hidden, 1))
        d_rec = d_gates[:, hidden:].split(sizes)
        d_output = chunked(d_output, chunks).split(sizes, 1)
        (d_h,) = d_state  # (chunks, batch, hidden / chunks)
        for t in reversed(range(len(sizes))):
            d_h = _begin(d_h, sizes[t], d_final[0]).add_(d_output[t])
            d_nr[t].mul_(d_h.unsqueeze(2))  # twice two columns, so that each is computed by one thread
            d_zh[t].mul_(d_h.unsqueeze(2))
            d_h = product(d_rec[t]).addcmul_(d_h, z[t])
        return [d_h]


class LSTMCell:
    """Columns o, i, f, g of the gates, and behind them the cell c = f * c_prev + i * g; h = o * tanh(c)."""

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
    def steps(sizes, gates, output, state, final, product: StepProduct):
        """As `GRUCell.steps`, for gates (frames, 5 * hidden) and a weight (4 * hidden, hidden)."""
        hidden = output.size(1)
        o, i, f, g, c_next = (column.split(sizes) for column in gates.split(hidden, 1))
        oi = gates[:, : 2 * hidden].split(sizes)
        recurrent = product.parts(gates[:, : 4 * hidden], sizes)
        h, c = state  # each (batch, hidden)
        for t, (size, h_next) in enumerate(zip(sizes, output.split(sizes), strict=True)):
            h, c = _end(h, size, final[0]), _end(c, size, final[1])
            product.add_to(recurrent[t], h)
            oi[t].sigmoid_()
            f[t].sigmoid_()
            _tanh_(g[t])
            c = torch.mul(f[t], c, out=c_next[t]).addcmul_(i[t], g[t])
            h = _tanh_(h_next.copy_(c)).mul_(o[t])
        return [h, c]

    @staticmethod
    def derivatives(gates, h_prev, c_prev, out):
        """Fill out (frames, 5 * hidden) with the derivatives of h by o, of c by i, f, g, and of h by c."""
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
    def steps_backward(sizes, gates, d_gates, d_output, d_state, d_final, product: StepProduct):
        """As `GRUCell.steps_backward`, with the gradients of both h and c in d_state and d_final."""
        hidden, chunks = d_output.size(1), product.chunks
        f = chunked(gates[:, 2 * hidden : 3 * hidden], chunks).split(sizes, 1)
        d_columns = _chunked_columns(d_gates, 5, chunks)
        d_o, h_by_c = d_columns[:, :, 0].split(sizes, 1), d_columns[:, :, 4].split(sizes, 1)
        d_if, d_g = d_columns[:, :, 1:3].split(sizes, 1), d_columns[:, :, 3].split(sizes, 1)
        d_rec = d_gates[:, : 4 * hidden].split(sizes)
        d_output = chunked(d_output, chunks).split(sizes, 1)
        d_h, d_c = d_state  # each (chunks, batch, hidden / chunks)
        for t in reversed(range(len(sizes))):
            d_h = _begin(d_h, sizes[t], d_final[0]).add_(d_output[t])
            d_c = _begin(d_c, sizes[t], d_final[1]).addcmul_(d_h, h_by_c[t])
            d_o[t].mul_(d_h)
            d_if[t].mul_(d_c.unsqueeze(2))
            d_g[t].mul_(d_c)
            d_c.mul_(f[t])
            d_h = product(d_rec[t])
        return [d_h, d_c]


def _tanh_(values: Tensor) -> Tensor:
    """tanh in place, to 1e-7, by the sigmoid: PyTorch computes that six times as fast as its tanh."""
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)


def _end(state: Tensor, size: int, final: Tensor) -> Tensor:
    """Keep the states (batch, hidden) of the first size sequences; those of sequences that ended go to final."""
    if state.size(0) == size:
        return state
    final[size : state.size(0)] = state[size:]
    return state[:size]


def _begin(d_state: Tensor, size: int, d_final: Tensor) -> Tensor:
    """Add, going backward, the sequences that end here: the gradient of their state is that of their final one."""
    if d_state.size(1) == size:
        return d_state
    return torch.cat([d_state, d_final[:, d_state.size(1) : size]], 1)


def _chunked_columns(gates: Tensor, num_columns: int, chunks: int) -> Tensor:
    """View (frames, num_columns * hidden) as (chunks, frames, num_columns, hidden / chunks)."""
    return gates.unflatten(1, (num_columns, chunks, -1)).permute(2, 0, 1, 3)
