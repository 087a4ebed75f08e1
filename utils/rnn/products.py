"""Matrix products of the recurrent layers, by the library that computes them fastest on this CPU.

PyTorch's own product, torch.mm, is MKL's on x86 processors. On AMD's with AVX-512, oneDNN's is faster, most of all with
the few rows of a time step, once the weight is in oneDNN's own order. `_linear_pointwise`, which torch.compile uses,
takes such a weight, but is private; the public doors to the same product (torch.utils.mkldnn, F.linear) reorder the
input and the result, or the weight, at every call. Where it is missing, torch.mm is used.

Products in bfloat16 read bfloat16 operands, add up in float32, and round each result to bfloat16.
"""

import functools
import math
import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from utils.system.errors import InputError

MKL, ONEDNN = LIBRARIES = ("mkl", "onednn")
VARIABLE = "APC_MATMUL"
SERIAL_ELEMENTS = 1 << 15  # of an element-wise operation that PyTorch leaves to one thread
FEW_ROWS, PARTS = 4, 24  # of products that are faster in parts, and the most parts
REORDER_ROWS = 32  # oneDNN keeps a weight in the same order for any number of rows but one


@functools.cache
def matmul_library() -> str:
    """The library of float32 products: that of the environment variable APC_MATMUL, else the faster one on this CPU.

    Raises:
        InputError: APC_MATMUL names none, or oneDNN where PyTorch lacks the operator.
    """
    forced = os.environ.get(VARIABLE)
    if forced not in (None, "", *LIBRARIES):
        raise InputError(f"{VARIABLE} is {forced!r:.40}, not one of {', '.join(LIBRARIES)}")
    cpu = _capabilities()
    fastest = ONEDNN if str(cpu.get("cpu_name")).startswith("AMD") and cpu.get("avx512_f") else MKL
    if (forced or fastest) == MKL:
        return MKL
    if _computes(OneDNNProducts()):
        return ONEDNN
    if forced:
        raise InputError(f"{VARIABLE} is {forced}, but this PyTorch cannot compute its products; unset it")
    return MKL


@functools.cache
def has_bf16_products() -> bool:
    """Whether this CPU multiplies in bfloat16, and PyTorch has the operator."""
    cpu = _capabilities()
    return bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16")) and _computes(BF16Products())


def choose_products(dtype: torch.dtype, bf16: bool = False) -> "Products":
    """The products for weights of a type; with `bf16` in bfloat16 where the CPU has such products."""
    if dtype == torch.float32:
        if bf16 and has_bf16_products():
            return BF16Products()
        if matmul_library() == ONEDNN:
            return OneDNNProducts()
    return TorchProducts()


def tells_capabilities() -> bool:
    """Whether this PyTorch tells what the CPU is and can do: since 2.11."""
    return hasattr(torch.cpu, "get_capabilities")


def _capabilities() -> dict[str, object]:
    return torch.cpu.get_capabilities() if tells_capabilities() else {}


def _computes(products: "Products") -> bool:
    """Whether products are what torch.mm says they are, on a small example."""
    x, weight = torch.arange(6.0).view(3, 2), torch.arange(8.0).view(4, 2)  # exact in bfloat16
    try:
        result = products.multiply(products.operand(x), products.prepare(weight))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(result, x @ weight.t())


class Products(ABC):
    """x @ weight.t() and its derivatives, for float32 or float64 results.

    A weight is (columns, size), as PyTorch's layers have it, and is prepared once for many products.
    """

    def operand(self, x: Tensor) -> Tensor:
        """A matrix as `multiply`, `add_product` and `add_outer` take it."""
        return x

    @abstractmethod
    def prepare(self, weight: Tensor) -> Tensor:
        """A weight as `multiply` and `add_product` take it."""

    @abstractmethod
    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        """(rows, size) to (rows, columns)."""

    def multiply_raw(self, x: Tensor, prepared: Tensor) -> Tensor:
        """As `multiply`, in the type of the operands."""
        return self.multiply(x, prepared)

    def add_product(self, total: Tensor, x: Tensor, prepared: Tensor) -> None:
        """Add x @ weight.t() to total, (rows, columns)."""
        total.add_(self.multiply(x, prepared))

    def add_outer(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left.t() @ right, of (rows, columns) and (rows, size), to total, (columns, size)."""
        total.addmm_(left.t(), right)

    def by_step(self, weight: Tensor, rows: int) -> "StepProduct":
        """The product with a weight for time steps of this many rows or fewer."""
        return StepProduct(self, weight, rows)


class StepProduct:
    """x @ weight.t() for the few rows of a time step.

    What it adds up is divided so that each part is computed by one thread: PyTorch divides more than SERIAL_ELEMENTS
    among the threads, which is no faster for so few, and much slower where another process has one of the cores.

    Attributes:
        chunks: how many shares the columns of a result are in.
    """

    chunks = 1

    def __init__(self, products: Products, weight: Tensor, rows: int) -> None:
        self._products, self._prepared = products, products.prepare(weight)
        self._width = max(1, SERIAL_ELEMENTS // rows)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, size) to (chunks, rows, columns / chunks)."""
        return self._products.multiply(self._products.operand(x), self._prepared).unsqueeze(0)

    def parts(self, totals: Tensor, sizes: list[int]) -> list[list[Tensor]]:
        """Views of totals, (rows of all steps, columns), for `add_to` at each of the steps of these sizes."""
        return list(zip(*(columns.split(sizes) for columns in totals.split(self._width, 1)), strict=True))

    def add_to(self, parts: list[Tensor], x: Tensor) -> None:
        """Add a step's x @ weight.t() to its totals."""
        product = self._products.multiply_raw(self._products.operand(x), self._prepared)
        for part, columns in zip(parts, product.split(self._width, 1), strict=True):
            part.add_(columns)


class TorchProducts(Products):
    """Products by torch.mm."""

    def prepare(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous()

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        return torch.mm(x, prepared)

    def add_product(self, total: Tensor, x: Tensor, prepared: Tensor) -> None:
        total.addmm_(x, prepared)

    def by_step(self, weight: Tensor, rows: int) -> "StepProduct":
        return ChunkedStepProduct(weight)


class ChunkedStepProduct(StepProduct):
    """A batch of products, one for each thread, which has its own contiguous share of the columns.

    On MKL two thirds of the time of one product, and less than half of that of one with a transposed weight.
    """

    def __init__(self, weight: Tensor) -> None:
        self.chunks = math.gcd(weight.size(0), torch.get_num_threads())
        self._weight = chunked(weight.t(), self.chunks).contiguous()  # (chunks, size, columns / chunks)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x.expand(self.chunks, -1, -1), self._weight)

    def parts(self, totals: Tensor, sizes: list[int]) -> list[Tensor]:
        return chunked(totals, self.chunks).split(sizes, 1)

    def add_to(self, parts: Tensor, x: Tensor) -> None:
        parts.add_(self(x))


class OneDNNProducts(Products):
    """Products by oneDNN in float32, with sums over many rows left to torch.mm, which is no slower there."""

    def prepare(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, REORDER_ROWS)

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, prepared, None, "none", [], "")


class BF16Products(OneDNNProducts):
    """Products by oneDNN of operands in bfloat16, with results in float32."""

    def operand(self, x: Tensor) -> Tensor:
        return x.bfloat16()

    def prepare(self, weight: Tensor) -> Tensor:
        return super().prepare(weight.bfloat16())

    def multiply_raw(self, x: Tensor, prepared: Tensor) -> Tensor:
        return super().multiply(x, prepared)

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        return self.multiply_raw(x, prepared).float()

    def add_outer(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        total.add_(torch.mm(left.t(), right))


def chunked(values: Tensor, chunks: int) -> Tensor:
    """View (rows, columns) as (chunks, rows, columns / chunks)."""
    return values.unflatten(1, (chunks, -1)).transpose(0, 1)


def linear_in_parts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight.t() + bias of few rows: as a batch of products it takes a third of the time of one on a CPU."""
    parts = math.gcd(len(weight), PARTS)
    weights, x = weight.unflatten(0, (parts, -1)), x.t().expand(parts, -1, -1)
    return torch.baddbmm(bias.view(parts, -1, 1), weights, x).flatten(0, 1).t()  # (rows, columns)
