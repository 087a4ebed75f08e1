"""Every matrix product of a recurrent layer, in the shapes and strides that it has, by each library.

    python benchmarks/products.py --hidden_size 512 --batch_size 32

One line a product, in GFLOP/s (medians), the same operands for all: torch.mm and its batch of column shares (MKL on
x86 processors), oneDNN in float32 and in bfloat16. A library that falls to a reference kernel for some layout is
hundreds of times slower: a product at less than a tenth of torch.mm is marked, and ends the script with exit code 1.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from common import MEL_DIM, RNN_GATES, parse_arguments, seconds_of

from utils.rnn.cells import GRUCell, LSTMCell
from utils.rnn.packed_rnn import FRAMES_PER_BLOCK
from utils.rnn.products import BF16Products, OneDNNProducts, Products, TorchProducts, has_bf16_products, matmul_library

CELLS = {"gru": GRUCell, "lstm": LSTMCell}
MIN_SECONDS = 0.02  # of each measurement
FALLEN = 0.1  # of the speed of torch.mm


def main() -> None:
    args = parse_arguments(__doc__.splitlines()[0], 400)
    libraries: dict[str, Products] = {"torch": TorchProducts(), "oneDNN": OneDNNProducts()}
    if has_bf16_products():
        libraries["oneDNN bf16"] = BF16Products()
    print(f"{args.rnn_type}, {args.threads} threads; this machine multiplies by {matmul_library()}")
    print(f"{'':34}" + "".join(f"{name:>14}" for name in libraries))
    has_fallen = False
    for title, flops, make in products_of(args):
        speeds = {
            name: flops / median_seconds(make(products), args.repeats) / 1e9 for name, products in libraries.items()
        }
        fallen = [name for name, speed in speeds.items() if speed < FALLEN * speeds["torch"]]
        has_fallen |= bool(fallen)
        print(f"{title:34}" + "".join(f"{speed:14.0f}" for speed in speeds.values()) + ("  FALLEN" if fallen else ""))
    sys.exit(has_fallen)


def products_of(args: argparse.Namespace) -> list[tuple[str, int, Callable[[Products], Callable[[], object]]]]:
    """A title, the floating-point operations, and a function that makes the work of a library, for each product."""
    hidden, columns = args.hidden_size, RNN_GATES[args.rnn_type] * args.hidden_size
    cell = CELLS[args.rnn_type]
    gates = torch.randn(FRAMES_PER_BLOCK, cell.num_columns * hidden)
    gates_in, gates_rec = cell.split(gates, hidden)
    work = []
    for rows in sorted({args.batch_size, max(1, args.batch_size // 4), 1}, reverse=True):
        for title, x, weight in (
            ("forward", torch.randn(rows, hidden), torch.randn(columns, hidden)),
            ("backward", gates_rec[:rows], torch.randn(columns, hidden).t()),
        ):
            flops = 2 * rows * columns * hidden
            work.append((f"time step, {title}, {rows} rows", flops, by_step(x, weight)))
    for size in (MEL_DIM, hidden):
        frames, weight = torch.randn(FRAMES_PER_BLOCK, size), torch.randn(columns, size)
        flops = 2 * FRAMES_PER_BLOCK * columns * size
        work.append((f"inputs of {size}", flops, projection(gates_in, frames, weight)))
        work.append((f"gradient of inputs of {size}", flops, multiplication(gates_in, weight.t())))
        work.append((f"gradient of weights for {size}", flops, outer(torch.zeros(columns, size), gates, frames, cell)))
    return work


def by_step(x: torch.Tensor, weight: torch.Tensor) -> Callable[[Products], Callable[[], object]]:
    """The product of a time step."""

    def make(products: Products) -> Callable[[], object]:
        product = products.by_step(weight, len(x))
        return lambda: product(x)

    return make


def projection(total: torch.Tensor, frames: torch.Tensor, weight: torch.Tensor) -> Callable:
    """The product of a block's inputs, added to columns of the gates."""

    def make(products: Products) -> Callable[[], object]:
        prepared = products.prepare(weight)
        return lambda: products.add_product(total, products.operand(frames), prepared)

    return make


def multiplication(x: torch.Tensor, weight: torch.Tensor) -> Callable[[Products], Callable[[], object]]:
    """The product of columns of the gates' gradients."""

    def make(products: Products) -> Callable[[], object]:
        prepared = products.prepare(weight)
        return lambda: products.multiply(products.operand(x), prepared)

    return make


def outer(total: torch.Tensor, gates: torch.Tensor, frames: torch.Tensor, cell: type) -> Callable:
    """The gradient of a weight, from columns of the gates' gradients."""

    def make(products: Products) -> Callable[[], object]:
        def run() -> None:
            d_in, _ = cell.split(products.operand(gates), gates.size(1) // cell.num_columns)
            products.add_outer(total, d_in, products.operand(frames))

        return run

    return make


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, each measurement of enough calls to be measured."""
    work()
    calls = max(1, round(MIN_SECONDS / seconds_of(work)))
    return statistics.median(seconds_of(lambda: [work() for _ in range(calls)]) / calls for _ in range(repeats))


if __name__ == "__main__":
    main()
