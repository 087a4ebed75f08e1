"""Facts about the model: it is the plain formulation, padding and order change nothing, bad sizes are named."""

import pytest
import torch
from plain_apc import PlainAPC
from torch import nn

from apc_model import APCModel
from utils import PrenetConfig, RNNConfig
from utils.rnn.packing import Packing, check_lengths

MEL, HIDDEN, LENGTHS = 6, 9, [7, 12, 1, 12, 3]


def make_models(rnn_type="gru", prenet_layers=0, residual=True, hidden=HIDDEN, layers=3):
    """The project's model and the plain one, with the same weights."""
    torch.manual_seed(0)
    prenet = PrenetConfig(MEL, hidden, prenet_layers, 0.0) if prenet_layers else None
    rnn = RNNConfig(hidden if prenet else MEL, hidden, layers, 0.0, residual, rnn_type)
    model = APCModel(MEL, prenet, rnn)
    plain = PlainAPC(MEL, hidden, layers, residual, getattr(nn, rnn_type.upper()), prenet_layers)
    plain.load_state_dict(model.state_dict())
    return model, plain


def make_batch(lengths=LENGTHS, seq_len=14):
    torch.manual_seed(1)
    lengths = torch.tensor(lengths)
    inputs = torch.randn(len(lengths), seq_len, MEL) * (torch.arange(seq_len)[:, None] < lengths[:, None, None])
    return inputs, lengths


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
@pytest.mark.parametrize("prenet_layers", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("hidden", [HIDDEN, MEL])
def test_outputs_and_gradients_are_those_of_the_plain_formulation(rnn_type, prenet_layers, residual, hidden):
    model, plain = make_models(rnn_type, prenet_layers, residual, hidden)
    inputs, lengths = make_batch()
    results = model(inputs, lengths), plain(inputs, lengths)
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)
    true = torch.arange(14)[None, :] < lengths[:, None]
    for predicted, feats in results:
        (predicted.square().sum() + feats[:, true].sin().sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_parameters_are_named_as_in_the_released_checkpoints():
    model, _ = make_models(prenet_layers=1, layers=1)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {
        "prenet.layers.0.weight": (HIDDEN, MEL),
        "prenet.layers.0.bias": (HIDDEN,),
        "rnns.0.weight_ih_l0": (3 * HIDDEN, HIDDEN),
        "rnns.0.weight_hh_l0": (3 * HIDDEN, HIDDEN),
        "rnns.0.bias_ih_l0": (3 * HIDDEN,),
        "rnns.0.bias_hh_l0": (3 * HIDDEN,),
        "postnet.layer.weight": (MEL, HIDDEN, 1),
        "postnet.layer.bias": (MEL,),
    }


@pytest.mark.parametrize("prenet_layers", [0, 1])
def test_what_stands_in_padding_changes_nothing(prenet_layers):
    model, _ = make_models(prenet_layers=prenet_layers)
    inputs, lengths = make_batch()
    filled = inputs.clone()
    filled[torch.arange(14)[None, :] >= lengths[:, None]] = float("nan")
    for ours, theirs in zip(model(inputs, lengths), model(filled, lengths), strict=True):
        assert torch.equal(ours, theirs)


def test_padding_predicts_the_bias_and_has_zero_feats():
    model, _ = make_models()
    predicted, feats = model(*make_batch())
    assert torch.equal(predicted[0, 7:], model.postnet.layer.bias.expand(7, -1))
    assert feats.shape == (3, 5, 14, HIDDEN) and not feats[:, 0, 7:].any() and feats[:, 0, :7].all()


def test_lengths_in_any_order_and_of_any_kind_give_the_same_utterances():
    model, _ = make_models()
    inputs, lengths = make_batch()
    predicted, feats = model(inputs, lengths)
    order = torch.tensor([3, 0, 4, 2, 1])
    for given in (lengths[order], lengths[order].tolist(), lengths[order].to(torch.int32)):
        again, feats_again = model(inputs[order], given)
        torch.testing.assert_close(again, predicted[order])
        torch.testing.assert_close(feats_again, feats[:, order])


def test_an_utterance_alone_has_the_features_it_has_in_a_batch():
    model, _ = make_models("lstm")
    inputs, lengths = make_batch()
    _, feats = model(inputs, lengths)
    _, alone = model(inputs[:1, :7], [7])
    torch.testing.assert_close(alone[:, 0], feats[:, 0, :7])


def test_features_never_look_ahead():
    model, _ = make_models()
    inputs, lengths = make_batch([12])
    _, feats = model(inputs, lengths)
    inputs[0, 8] += 1
    _, changed = model(inputs, lengths)
    assert torch.equal(feats[:, :, :8], changed[:, :, :8]) and not torch.equal(feats[:, :, 8], changed[:, :, 8])


def test_dropout_is_on_every_layers_output_but_the_last_before_the_residual():
    torch.manual_seed(0)
    model = APCModel(MEL, None, RNNConfig(MEL, HIDDEN, 3, 0.5, residual=False))
    inputs, lengths = make_batch([12])
    _, feats = model(inputs, lengths)
    dropped = (feats[:, 0, :12] == 0).float().mean((1, 2))
    assert 0.3 < dropped[0] < 0.7 and 0.3 < dropped[1] < 0.7 and dropped[2] == 0
    model.eval()
    assert (model(inputs, lengths)[1][:, 0, :12] != 0).all()


def test_residual_may_start_at_a_later_layer():
    inputs, lengths = make_batch([12])
    models = [APCModel(MEL, None, RNNConfig(MEL, MEL, 1, 0.0, True, first_residual_layer=first)) for first in (0, 1)]
    models[1].load_state_dict(models[0].state_dict())
    feats = [model(inputs, lengths)[1][0, 0, :12] for model in models]
    torch.testing.assert_close(feats[0], feats[1] + inputs[0, :12])


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 5, MEL + 1), [5, 5], rf"\(2, 5, {MEL + 1}\).*{MEL}"),
        ((2, MEL), [5, 5], rf"\(2, {MEL}\)"),
        ((2, 5, MEL), [5, 0], "length 0 of utterance 1 is not between 1 and 5"),
        ((2, 5, MEL), [6, 5], "length 6 of utterance 0 is not between 1 and 5"),
        ((2, 5, MEL), [5, 5, 5], r"shape \(3,\) but the batch has 2"),
        ((2, 5, MEL), [5.0, 4.0], "float32"),
        ((0, 5, MEL), [], "an empty batch: 0 utterances of 5 frames"),
    ],
)
def test_sizes_that_disagree_are_a_value_error_that_names_them(shape, lengths, message):
    model, _ = make_models()
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), lengths)


@pytest.mark.parametrize(
    ("prenet", "rnn", "message"),
    [
        (None, RNNConfig(5, 9, 1, 0.0, True), "rnn input_size is 5 but mel_dim is 6"),
        (PrenetConfig(6, 8, 1, 0.0), RNNConfig(8, 9, 1, 0.0, True), "prenet hidden_size 8"),
        (None, RNNConfig(6, 9, 0, 0.0, True), "num_layers is 0"),
        (None, RNNConfig(6, 9, 1, 1.5, True), "dropout is 1.5"),
        (None, RNNConfig(6, 9, 1, 0.0, True, "rnn"), "'rnn', not one of gru, lstm"),
    ],
)
def test_configs_that_do_not_fit_are_a_value_error(prenet, rnn, message):
    with pytest.raises(ValueError, match=message):
        APCModel(6, prenet, rnn)


@pytest.mark.parametrize("prenet", [None, PrenetConfig(80, 16, 2, 0.0)])
def test_under_autocast_features_keep_the_type_of_the_inputs(prenet):
    torch.manual_seed(0)
    model = APCModel(80, prenet, RNNConfig(16 if prenet else 80, 16, 2, 0.0, True))
    inputs, lengths = torch.randn(2, 9, 80), [9, 4]
    exact = model(inputs, lengths)[1]
    with torch.autocast("cpu", torch.bfloat16):
        predicted, feats = model(inputs, lengths)
    assert feats.dtype == torch.float32
    torch.testing.assert_close(feats, exact, atol=0.02, rtol=0.02)
    (predicted.float().sum() + feats.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_prediction_in_another_type_is_taken():
    """As autocast on a GPU gives it."""
    model, _ = make_models()
    inputs, lengths = make_batch()
    expected, _ = model(inputs, lengths)
    model.postnet.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    predicted, _ = model(inputs, lengths)
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frames_take_the_precision_of_the_weights_whole_and_as_a_stream(dtype):
    model = make_models()[0].to(dtype).eval()
    frames = torch.randn(2, 4, MEL)
    for given in (frames, frames.double(), frames.numpy()):
        feats = model(given)[1]
        assert feats.dtype == dtype and torch.equal(feats, model(frames.to(dtype))[1])
        assert torch.allclose(model.stream(given)[0].double(), feats.double(), atol=1e-2)


def test_lengths_stay_on_the_cpu_whatever_the_callers_default_device():
    expected = Packing.from_lengths(check_lengths([2, 4], 2, 4), 4, torch.device("cpu"))
    with torch.device("meta"):  # as "cuda" might be
        packing = Packing.from_lengths(check_lengths([2, 4], 2, 4), 4, torch.device("cpu"))
    assert all(map(torch.equal, packing, expected))


def test_a_batch_may_be_numpy_arrays_of_float64_and_without_padding_lengths_may_be_left_out():
    model, _ = make_models()
    inputs, lengths = make_batch()
    expected = model(inputs, lengths)
    float64 = inputs.double()
    for given in ((float64.numpy(), lengths.numpy()), (inputs.numpy(), lengths.tolist()), (float64, lengths)):
        torch.testing.assert_close(model(*given), expected)
    torch.testing.assert_close(model(inputs), model(inputs, [inputs.size(1)] * len(inputs)))
