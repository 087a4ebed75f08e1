"""The library of matrix products is a fact of the machine, can be forced, and falls back to torch.mm."""

import pytest
import torch

from utils.rnn import products
from utils.rnn.products import BF16Products, OneDNNProducts, TorchProducts, choose_products, matmul_library
from utils.system.errors import InputError

ZEN = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True}
OLD_AMD = {"cpu_name": "AMD EPYC", "avx512_f": False}
INTEL = {"cpu_name": "Intel Xeon", "avx512_f": True, "avx512_bf16": False}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A function that makes this machine another one."""

    def pretend(capabilities):
        monkeypatch.setattr(products, "_capabilities", lambda: capabilities)
        matmul_library.cache_clear()
        products.has_bf16_products.cache_clear()

    monkeypatch.delenv(products.VARIABLE, raising=False)
    pretend(ZEN)
    yield pretend
    matmul_library.cache_clear()
    products.has_bf16_products.cache_clear()


@pytest.mark.parametrize(("capabilities", "library"), [(ZEN, "onednn"), (OLD_AMD, "mkl"), (INTEL, "mkl"), ({}, "mkl")])
def test_the_cpu_decides(machine, capabilities, library):
    machine(capabilities)
    assert matmul_library() == library


@pytest.mark.parametrize("library", products.LIBRARIES)
def test_the_environment_forces(machine, monkeypatch, library):
    for capabilities in (ZEN, INTEL):
        monkeypatch.setenv(products.VARIABLE, library)
        machine(capabilities)
        assert matmul_library() == library


def test_an_unknown_library_is_refused(machine, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, "blis")
    with pytest.raises(InputError, match="APC_MATMUL is 'blis', not one of mkl, onednn"):
        matmul_library()


def refuse(*_):
    raise RuntimeError("could not create a primitive")


def wrong(self, x, prepared):
    return torch.zeros(3, 4, dtype=x.dtype)


@pytest.mark.parametrize("broken", [refuse, wrong])
def test_without_the_operator_products_are_those_of_torch(machine, monkeypatch, broken):
    monkeypatch.setattr(OneDNNProducts, "multiply", broken)
    assert matmul_library() == "mkl"
    assert not products.has_bf16_products()
    assert type(choose_products(torch.float32, bf16=True)) is TorchProducts
    monkeypatch.setenv(products.VARIABLE, "onednn")
    matmul_library.cache_clear()
    with pytest.raises(InputError, match="cannot compute"):
        matmul_library()


def test_a_cpu_without_bfloat16_products_computes_in_float32(machine):
    machine(INTEL)
    assert type(choose_products(torch.float32, bf16=True)) is TorchProducts


def test_float64_is_never_rounded():
    assert type(choose_products(torch.float64, bf16=True)) is TorchProducts


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(TorchProducts, 1e-6), (OneDNNProducts, 1e-6), (BF16Products, 1e-2)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("rows", [1, 3, 32, 200])
def test_every_product_is_the_product(kind, tolerance, rows):
    """Also of operands that are slices of wider matrices, and of transposed weights, as the layers have them."""
    torch.manual_seed(0)
    wide, weight = torch.randn(rows, 100), torch.randn(48, 40) / 40**0.5
    x, ours = wide[:, 60:], kind()
    operand = ours.operand(x)
    expected = x.double() @ weight.double().t()
    total = torch.ones(rows, 50)
    ours.add_product(total[:, :48], operand, ours.prepare(weight))
    outer = torch.ones(40, 30)
    ours.add_outer(outer, operand, ours.operand(wide)[:, :30])
    results = [
        (ours.multiply(operand, ours.prepare(weight)), expected),
        (ours.multiply(operand, ours.prepare(weight.t().contiguous().t())), expected),
        (torch.cat(list(ours.by_step(weight, rows)(x)), 1), expected),
        (total[:, :48], 1 + expected),
        (outer, 1 + x.double().t() @ wide[:, :30].double()),
    ]
    for result, reference in results:
        assert result.dtype == torch.float32
        assert (result - reference).norm() <= tolerance * reference.norm()
    assert torch.equal(total[:, 48:], torch.ones(rows, 2))
