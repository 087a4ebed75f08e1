"""Facts about the objective: masked and padded losses are what DESIGN's formulas say, to float precision."""

import pytest
import torch
from plain_apc import plain_loss
from test_apc_model import make_batch, make_models

from utils.training.objective import apc_loss, count_targets


@pytest.mark.parametrize("loss", ["masked", "padded"])
@pytest.mark.parametrize("time_shift", [1, 3])
@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_losses_gradient_norms_and_weights_follow_the_plain_formulation_step_by_step(loss, time_shift, rnn_type):
    model, plain = make_models(rnn_type)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, plain)]
    for step in range(12):
        torch.manual_seed(step)
        inputs, lengths = make_batch((torch.randperm(10)[:5] + 4).tolist(), seq_len=16)
        trimmed = inputs[:, : int(lengths.max())]
        ours = apc_loss(model, trimmed, lengths, time_shift, loss, max_seq_len=16)
        theirs = plain_loss(plain, inputs, lengths, time_shift, masked=loss == "masked")
        torch.testing.assert_close(ours, theirs)
        norms = []
        for value, m, optimizer in zip((ours, theirs), (model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0))
            optimizer.step()
        torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_masked_loss_does_not_depend_on_how_far_a_batch_is_padded():
    model, _ = make_models()
    inputs, lengths = make_batch()
    inputs, lengths = inputs[[0, 1, 3]], lengths[[0, 1, 3]]
    longer = torch.cat([inputs, torch.full((3, 20, 6), 7.0)], dim=1)
    assert torch.equal(apc_loss(model, inputs, lengths), apc_loss(model, longer, lengths))


@pytest.mark.parametrize("loss", ["masked", "padded"])
def test_batches_average_to_the_loss_of_the_whole(loss):
    model, _ = make_models()
    inputs, lengths = make_batch([7, 12, 5, 12, 3])
    whole = apc_loss(model, inputs, lengths, 2, loss, max_seq_len=14)
    total = count = 0
    for part in (slice(0, 2), slice(2, 5)):
        n = count_targets(lengths[part], 2, loss, 14)
        total, count = total + n * apc_loss(model, inputs[part], lengths[part], 2, loss, max_seq_len=14), count + n
    torch.testing.assert_close(total / count, whole)


def test_a_step_does_not_build_the_stack_of_feats():
    """Training reads packed frames only: a model without forward() trains all the same."""
    model, _ = make_models()
    model.forward = None
    apc_loss(model, *make_batch([7, 12])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
