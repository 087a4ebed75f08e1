"""A packed RNN layer is nn.GRU or nn.LSTM, to float precision, at a cost linear in the length."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from utils.rnn import packed_rnn as packed_rnn_module
from utils.rnn import products as products_module
from utils.rnn.packed_rnn import packed_rnn
from utils.rnn.products import LIBRARIES, MKL, has_bf16_products

RNN_CLASSES = pytest.mark.parametrize("rnn_class", [nn.GRU, nn.LSTM])
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
CASES = {  # lengths of the utterances, input size, hidden size
    "ragged, in any order": ([5, 9, 2, 9, 1], 3, 4),
    "all of one length": ([6, 6, 6], 4, 4),
    "one utterance": ([11], 3, 6),
    "one frame each": ([1, 1, 1], 5, 2),
    "one frame": ([1], 2, 2),
    "one hidden unit": ([4, 7], 3, 1),
    "one input": ([4, 7, 7], 1, 8),
    "long beside short": ([300, 1, 40], 3, 16),
}


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """The library of float32 products."""
    monkeypatch.setattr(products_module, "matmul_library", lambda: request.param)
    return request.param


@pytest.fixture(params=[8, packed_rnn_module.FRAMES_PER_BLOCK], ids=["small blocks", "default blocks"])
def frames_per_block(request, monkeypatch):
    monkeypatch.setattr(packed_rnn_module, "FRAMES_PER_BLOCK", request.param)


def make_inputs(rnn_class, lengths, input_size, hidden, dtype=torch.float32):
    """Returns an RNN, a padded batch and an initial state, all random and alike at every call."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    rnn = rnn_class(input_size, hidden, batch_first=True).to(dtype)
    for parameter in rnn.parameters():
        parameter.data = random(*parameter.shape) / hidden**0.5
    inputs = random(len(lengths), max(lengths), input_size).requires_grad_()
    state = [random(1, len(lengths), hidden).requires_grad_() for _ in range(1 if rnn_class is nn.GRU else 2)]
    return rnn, inputs, state[0] if rnn_class is nn.GRU else tuple(state)


def flat(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


def pack(inputs, lengths):
    return pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)


def tensors(result):
    """The packed output and the final state or states of a layer."""
    output, final = result
    return [output.data, *flat(final)]


def run(layer, rnn, inputs, lengths, state):
    """Returns outputs, final states and every gradient of a loss that weighs all of them differently."""
    output, final = layer(pack(inputs, lengths), state)
    results = tensors((output, final))
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(result.shape, generator=generator, dtype=result.dtype) for result in results]
    loss = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
    wanted = [inputs, *rnn.parameters(), *(flat(state) if state is not None else [])]
    return output, [result.detach() for result in results] + list(torch.autograd.grad(loss, wanted))


def assert_same(ours, plain, tolerance):
    for our, reference in zip(ours, plain, strict=True):
        assert our.shape == reference.shape
        torch.testing.assert_close(our, reference, rtol=tolerance, atol=tolerance * (1 + reference.abs().max().item()))


@RNN_CLASSES
@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("frames_per_block", "library")
def test_equals_the_module_in_outputs_states_and_every_gradient(rnn_class, case, dtype, tolerance):
    lengths, input_size, hidden = CASES[case]
    rnn, inputs, state = make_inputs(rnn_class, lengths, input_size, hidden, dtype)
    for initial in (state, None):
        output, ours = run(partial(packed_rnn, rnn), rnn, inputs, lengths, initial)
        reference, plain = run(rnn, rnn, inputs, lengths, initial)
        assert_same(ours, plain, tolerance)
        for index in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert torch.equal(getattr(output, index), getattr(reference, index))


@RNN_CLASSES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equals_the_module_with_any_number_of_threads(rnn_class, threads):
    before = torch.get_num_threads()
    rnn, inputs, state = make_inputs(rnn_class, [7, 3, 5], 4, 6, torch.float64)
    try:
        torch.set_num_threads(threads)
        _, ours = run(partial(packed_rnn, rnn), rnn, inputs, [7, 3, 5], state)
    finally:
        torch.set_num_threads(before)
    assert_same(ours, run(rnn, rnn, inputs, [7, 3, 5], state)[1], 1e-12)


@RNN_CLASSES
def test_a_sequence_packed_in_order_needs_no_indices(rnn_class):
    rnn, inputs, state = make_inputs(rnn_class, [5, 4, 2], 3, 4, torch.float64)
    packed = pack_padded_sequence(inputs, [5, 4, 2], batch_first=True)
    assert packed.sorted_indices is None
    result = packed_rnn(rnn, packed, state)
    assert_same(tensors(result), tensors(rnn(packed, state)), 1e-12)
    assert result[0].unsorted_indices is None


@RNN_CLASSES
@pytest.mark.usefixtures("frames_per_block")
def test_gradcheck_with_an_initial_state_and_through_the_final_one(rnn_class):
    lengths = [4, 1, 6, 4]
    rnn, inputs, state = make_inputs(rnn_class, lengths, 3, 2, torch.float64)
    parameters = list(rnn.parameters())

    def layer(inputs, *weights_and_states):
        states = weights_and_states[len(parameters) :]
        return tuple(tensors(packed_rnn(rnn, pack(inputs, lengths), states[0] if rnn_class is nn.GRU else states)))

    assert torch.autograd.gradcheck(layer, (inputs, *parameters, *flat(state)))


@RNN_CLASSES
@pytest.mark.usefixtures("frames_per_block", "library")
def test_the_same_without_gradients_and_without_a_graph(rnn_class):
    lengths = [9, 2, 6, 9]
    rnn, inputs, state = make_inputs(rnn_class, lengths, 3, 4)
    expected = tensors(packed_rnn(rnn, pack(inputs, lengths), state))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = tensors(packed_rnn(rnn, pack(inputs, lengths), state))
        for result, reference in zip(results, expected, strict=True):
            assert not result.requires_grad and reference.requires_grad
            assert torch.equal(result, reference)


@RNN_CLASSES
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", ["one utterance", "one frame"])
def test_one_sequence_without_gradients_is_the_same_too(rnn_class, batch_first, case):
    lengths, input_size, hidden = CASES[case]
    rnn, inputs, state = make_inputs(rnn_class, lengths, input_size, hidden)
    rnn.batch_first = batch_first
    for initial in (state, None):
        with torch.no_grad():
            result = packed_rnn(rnn, pack(inputs, lengths), initial)
            expected = rnn(pack(inputs, lengths), initial)
        assert result[0].batch_sizes.equal(expected[0].batch_sizes)
        assert_same(tensors(result), tensors(expected), 2e-6)


@RNN_CLASSES
def test_a_frozen_layer_on_plain_input_has_no_graph(rnn_class):
    rnn, inputs, _ = make_inputs(rnn_class, [3, 2], 3, 4)
    rnn.requires_grad_(False)
    assert all(part.grad_fn is None for part in tensors(packed_rnn(rnn, pack(inputs.detach(), [3, 2]))))


class Work(TorchDispatchMode):
    """Counts matrix products by operator, and the elements of every tensor made."""

    def __init__(self):
        super().__init__()
        self.products, self.elements = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm_"):
            self.products.append(name)
        for result in results if isinstance(results, tuple | list) else [results]:
            self.elements += result.numel() if isinstance(result, torch.Tensor) else 0
        return results


def backward_work(rnn, inputs, lengths):
    output, _ = packed_rnn(rnn, pack(inputs, lengths))
    loss = output.data.sum()
    with Work() as work:
        loss.backward()
    return work


@RNN_CLASSES
def test_what_is_frozen_costs_no_backward_work(rnn_class, monkeypatch):
    monkeypatch.setattr(products_module, "matmul_library", lambda: MKL)
    lengths = [6, 5, 2]
    rnn, inputs, _ = make_inputs(rnn_class, lengths, 3, 4)
    assert sorted(backward_work(rnn, inputs, lengths).products) == ["addmm_", "addmm_", "mm"]
    assert backward_work(rnn, inputs.detach(), lengths).products == ["addmm_", "addmm_"]
    rnn.weight_hh_l0.requires_grad_(False)
    assert sorted(backward_work(rnn, inputs, lengths).products) == ["addmm_", "mm"]
    rnn.requires_grad_(False).zero_grad()
    assert backward_work(rnn, inputs, lengths).products == ["mm"]
    assert all(parameter.grad is None for parameter in rnn.parameters())


@RNN_CLASSES
def test_backward_work_grows_in_proportion_to_the_length(rnn_class):
    def elements(length):
        lengths = [length, length, length // 2]
        rnn, inputs, _ = make_inputs(rnn_class, lengths, 16, 16)
        return backward_work(rnn, inputs, lengths).elements

    short, long = elements(200), elements(1600)  # frames
    assert long < 1.15 * 8 * short


@RNN_CLASSES
def test_a_second_backward_through_a_kept_graph_gives_the_same_gradients(rnn_class):
    rnn, inputs, state = make_inputs(rnn_class, [6, 3, 5], 3, 4)
    output, final = packed_rnn(rnn, pack(inputs, [6, 3, 5]), state)
    loss = output.data.square().sum() + sum(part.sum() for part in flat(final))
    wanted = [inputs, *rnn.parameters(), *flat(state)]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@RNN_CLASSES
@pytest.mark.usefixtures("library")
def test_two_runs_agree_bit_for_bit(rnn_class):
    lengths = [70, 64, 30, 8]
    rnn, inputs, state = make_inputs(rnn_class, lengths, 40, 64)
    runs = [run(partial(packed_rnn, rnn), rnn, inputs, lengths, state)[1] for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@RNN_CLASSES
@pytest.mark.parametrize(
    "options", [{"bidirectional": True}, {"num_layers": 2}, {"bias": False}], ids=lambda options: next(iter(options))
)
def test_any_other_module_is_called(rnn_class, options):
    _, inputs, _ = make_inputs(rnn_class, [4, 2], 3, 4)
    rnn = rnn_class(3, 4, batch_first=True, **options)
    packed = pack(inputs, [4, 2])
    results = tensors(packed_rnn(rnn, packed)), tensors(rnn(packed))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_other_dtypes_are_left_to_the_module():
    rnn, inputs, _ = make_inputs(nn.GRU, [4, 2], 3, 4)
    packed = pack(inputs, [4, 2])
    half = PackedSequence(packed.data.bfloat16(), packed.batch_sizes)
    assert packed_rnn(rnn.bfloat16(), half)[0].data.dtype == torch.bfloat16


def run_under_autocast(rnn, packed, dtype, enabled=True):
    """Returns the output and every gradient, the backward also under autocast."""
    rnn.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=enabled):
        output = packed_rnn(rnn, packed)[0].data
        output.square().sum().backward()
    return [output.detach(), *(parameter.grad for parameter in rnn.parameters())]


@RNN_CLASSES
def test_under_autocast_to_float16_a_layer_computes_in_float32_forward_and_backward(rnn_class):
    rnn, inputs, _ = make_inputs(rnn_class, [4, 2], 3, 4)
    packed = pack(inputs, [4, 2])
    half = packed._replace(data=packed.data.detach().half())  # what an autocast layer before it gives
    ours = run_under_autocast(rnn, half, torch.float16)
    expected = run_under_autocast(rnn, packed._replace(data=half.data.float()), torch.float16, enabled=False)
    assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(ours, expected, strict=True))


@RNN_CLASSES
@pytest.mark.parametrize("lengths", [[40, 33, 7, 21], [40, 40, 40, 40]], ids=["ragged", "equal"])
def test_under_autocast_to_bfloat16_only_products_are_in_bfloat16_where_the_cpu_has_them(rnn_class, lengths):
    rnn, inputs, _ = make_inputs(rnn_class, lengths, 24, 32)
    packed = pack(inputs.detach(), lengths)
    ours = run_under_autocast(rnn, packed, torch.bfloat16)
    expected = run_under_autocast(rnn, packed, torch.bfloat16, enabled=False)
    assert all(result.dtype == torch.float32 for result in ours)
    errors = [((one - other).norm() / other.norm()).item() for one, other in zip(ours, expected, strict=True)]
    assert max(errors) < 0.02
    assert (min(errors) > 1e-5) == has_bf16_products()


@RNN_CLASSES
def test_sizes_that_do_not_fit_are_refused_as_the_module_refuses_them(rnn_class):
    rnn, inputs, state = make_inputs(rnn_class, [4, 2], 3, 4)
    with pytest.raises(RuntimeError):
        packed_rnn(rnn, pack(inputs[..., :2], [4, 2]), state)
    with pytest.raises(RuntimeError):
        packed_rnn(rnn, pack(inputs[:1], [4]), state)
