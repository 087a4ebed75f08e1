"""APC in its plainest formulation: single recurrent layers, packing and padding between them, on sorted batches.

What the tests hold the project against; slow on a CPU, and easy to check by eye.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PlainAPC(nn.Module):
    """Parameters are named as in the released checkpoints."""

    def __init__(self, mel_dim, hidden_size, num_layers, residual, rnn_class=nn.GRU, prenet_layers=0, dropout=0.0):
        super().__init__()
        self.residual, self.dropout = residual, dropout
        if prenet_layers:
            self.prenet = nn.Module()
            sizes = [mel_dim] + [hidden_size] * prenet_layers
            self.prenet.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        sizes = [hidden_size if prenet_layers else mel_dim] + [hidden_size] * num_layers
        self.rnns = nn.ModuleList(rnn_class(a, b, batch_first=True) for a, b in pairwise(sizes))
        self.postnet = nn.Module()
        self.postnet.layer = nn.Conv1d(hidden_size, mel_dim, kernel_size=1)

    def forward(self, inputs, lengths):
        """(batch, seq_len, mel_dim), (batch,) -> predicted (batch, seq_len, mel_dim), feats (layers, batch, ...)."""
        seq_len, feats = inputs.size(1), []
        if hasattr(self, "prenet"):
            for layer in self.prenet.layers:
                inputs = torch.relu(layer(inputs))
            feats.append(inputs)
        for i, rnn in enumerate(self.rnns):
            packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=seq_len)
            if i < len(self.rnns) - 1:
                output = nn.functional.dropout(output, self.dropout, self.training)
            if self.residual and inputs.size(-1) == output.size(-1):
                output = output + inputs * (torch.arange(seq_len)[None, :, None] < lengths[:, None, None])
            inputs = output
            feats.append(output)
        predicted = self.postnet.layer(inputs.transpose(1, 2)).transpose(1, 2)
        return predicted, torch.stack(feats)


def plain_loss(model, inputs, lengths, time_shift, masked):
    """L1 between what is predicted from frames 1..T-n and frames n+1..T; over true frames, or over padding too."""
    predicted, _ = model(inputs[:, :-time_shift], lengths - time_shift)
    errors = (predicted - inputs[:, time_shift:]).abs()  # (batch, seq_len - n, mel_dim)
    if not masked:
        return errors.mean()
    is_true = torch.arange(errors.size(1))[None, :] < (lengths - time_shift)[:, None]
    return errors[is_true].mean()
