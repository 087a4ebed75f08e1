"""Facts about damaged files: each is read rightly or refused in one line, in little time and memory."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kaldiio
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import MIB, memory_limit, time_limit
from preparing_runs import prepare

from apc_model import APCModel
from export.export_model import to_safetensors
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.corpus.normalization import Normalizer
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.prepared import load_lengths, load_tensor, save_lengths, save_tensor
from utils.corpus.sources import ArchiveSource
from utils.kaldi.write_archives import write_ark, write_blogmel
from utils.system.errors import InputError
from utils.training.checkpointing import load_last_state
from utils.training.experiment import Experiment

EXAMPLES = 400  # of each kind of file
MEMORY_BYTES = 256 * MIB  # all of a kind's examples together, the tools' own needs included
SECONDS = 20  # for one example, on a busy machine
MEL, HIDDEN = 3, 4
CONFIG = {"experiment_name": "foo", "rnn_residual": True, "time_shift": 2, "learning_rate": 1e-3}
MADE_FROM = {"archives": [{"name": "a.blogmel", "bytes": 7}], "max_seq_len": 4, "norm": "none"}
FRAMES = {f"s{i}-1-{i}": np.random.default_rng(i).normal(size=(i + 1, MEL)).astype(np.float32) for i in range(3)}
TENSOR = torch.from_numpy(np.concatenate(list(FRAMES.values())))
NORMALIZER = Normalizer("speaker", "", {name: (np.arange(3.0), np.ones(3) / 3) for name in FRAMES})


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: write a good one at a path.
        read: read it as the scripts do.
        check: of what was read from a damaged file, and what the good one gave: whether it may be accepted.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    check: Callable[[Any, Any], bool]


def same(found, expected):
    """Whether two values of plain containers and tensors are equal, to the bit."""
    if isinstance(expected, (torch.Tensor, np.ndarray)):
        return type(found) is type(expected) and found.dtype == expected.dtype and np.array_equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def read_archive(path):
    return [(found.id, found.load()) for found in ArchiveSource([path]).utterances()]


def are_frames(found, _expected):
    """Whether an archive gave frames: float32, finite, not empty."""
    return all(x.dtype == np.float32 and x.ndim == 2 and x.size and np.isfinite(x).all() for _, x in found)


def is_tensor(found, _expected):
    return found.dtype == torch.float32 and found.dim() == 2 and found.numel() <= TENSOR.numel()


def are_lengths(found, _expected):
    return all(type(u) is str and "/" not in u and ".." not in u and n > 0 for u, n in found.items())


def write_scp(path):
    write_ark(path.with_suffix(".ark"), FRAMES.items())


def model():
    torch.manual_seed(0)
    return APCModel(MEL, None, RNNConfig(MEL, HIDDEN, 2, 0.0, True))


def write_model(path, is_zip=True):
    path.with_name("config.json").write_text(json.dumps(CONFIG))
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=is_zip)


def is_model(found, _expected):
    """Whether weights are those of some model that can run, of no more numbers than the file holds."""
    with torch.no_grad():
        predicted, _ = found(torch.zeros(1, 2, found.mel_dim), [2])
    total = sum(p.numel() for p in found.parameters())
    return predicted.shape == (1, 2, found.mel_dim) and total <= sum(p.numel() for p in model().parameters())


def same_model(found, expected):
    return same(dict(found.state_dict()), dict(expected.state_dict())) and found.rnn_config == expected.rnn_config


def write_state(path):
    state = {"progress": {"step": 7, "best": math.inf}, "model": dict(model().state_dict()), "random": [(3, (1, 2))]}
    torch.save(state, path)


def read_state(path):
    return load_last_state(Experiment(path.parent.parent, "foo", CONFIG))


def read_experiment(path):
    with Experiment(path.parent.parent, "foo", CONFIG, resume=True, may_change=frozenset(["learning_rate"])):
        return json.loads(path.read_text())


def read_beside_model(path):
    checkpoint = path.with_name("foo__epoch_1.model")
    torch.save(model().state_dict(), checkpoint)
    return load_pretrained(checkpoint)


def read_made_from(path):
    with OutputDirectory(path.parent, MADE_FROM):
        return json.loads(path.read_text())


def apply_normalizer(path):
    normalizer = Normalizer.load(path)
    return [normalizer.apply(frames, name) for name, frames in FRAMES.items()]


def are_normalized(found, _expected):
    return all(np.isfinite(x).all() and x.dtype == np.float32 for x in found)


def read_prepared(path):
    """What prepare_data.py makes of an archive, with bad utterances left out."""
    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    prepare(path, out, "--on_error", "skip", "--max_seq_len", 2)
    return {utterance: (n, load_tensor(out / f"{utterance}.pt")) for utterance, n in load_lengths(out).items()}


def is_prepared(found, _expected):
    return all(1 <= n <= 2 and x.shape[0] == 2 and x.isfinite().all() and not x[n:].any() for n, x in found.values())


def write_frames(path):
    write_blogmel(path, FRAMES.items(), decimals=3)


def write_legacy(path):
    torch.save(TENSOR, path, _use_new_zipfile_serialization=False)


KINDS = {
    "a.blogmel": Kind(write_frames, read_archive, are_frames),
    "a.blogmel.xz": Kind(write_frames, read_archive, same),
    "a.blogmel.gz": Kind(write_frames, read_archive, same),
    "prepared/a.blogmel": Kind(write_frames, read_prepared, is_prepared),
    "a.ark": Kind(lambda path: write_ark(path, FRAMES.items()), read_archive, are_frames),
    "compressed/a.ark": Kind(
        lambda path: kaldiio.save_ark(str(path), FRAMES, compression_method=2), read_archive, are_frames
    ),
    "a.scp": Kind(write_scp, read_archive, are_frames),
    "lengths.pkl": Kind(
        lambda path: save_lengths(path.parent, dict.fromkeys(FRAMES, 3)),
        lambda path: load_lengths(path.parent),
        are_lengths,
    ),
    "a.pt": Kind(lambda path: save_tensor(path, TENSOR), load_tensor, same),
    "legacy/a.pt": Kind(write_legacy, load_tensor, is_tensor),
    "foo.dir/foo__epoch_1.model": Kind(write_model, load_pretrained, same_model),
    "legacy/foo__epoch_1.model": Kind(functools.partial(write_model, is_zip=False), load_pretrained, is_model),
    "a.safetensors": Kind(lambda path: path.write_bytes(to_safetensors(model())), load_pretrained, is_model),
    "foo.dir/foo__step_7.state": Kind(write_state, read_state, same),
    "foo.dir/config.json": Kind(lambda path: path.write_text(json.dumps(CONFIG)), read_experiment, same),
    "beside/config.json": Kind(lambda path: path.write_text(json.dumps(CONFIG)), read_beside_model, is_model),
    "made_from.json": Kind(lambda path: path.write_text(json.dumps(MADE_FROM)), read_made_from, same),
    "normalization.json": Kind(NORMALIZER.save, apply_normalizer, are_normalized),
}

places = st.integers(0, 1 << 20)
mutations = st.one_of(
    st.tuples(st.just("replace"), places, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("replace"), places, st.sampled_from([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"9" * 20, b"..", b"/|"])),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("delete"), places, st.integers(1, 40)),
    st.tuples(st.just("repeat"), places, st.integers(1, 40)),
    st.tuples(st.just("cut"), places, st.none()),
)


def mutated(content, changes):
    """Bytes with changes made to them."""
    content = bytearray(content)
    for change, place, what in changes:
        at = place % (len(content) + 1)
        if change == "replace":
            content[at : at + len(what)] = what
        elif change == "insert":
            content[at:at] = what
        elif change == "delete":
            del content[at : at + what]
        elif change == "repeat":
            content[at:at] = content[at : at + what]
        else:
            del content[at:]
    return bytes(content)


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_rightly_or_refused_in_one_line(name, tmp_path, monkeypatch):
    kind, path = KINDS[name], tmp_path / "around" / "a" / name
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir(parents=True)
    kind.write(path)
    content, good = path.read_bytes(), kind.read(path)
    outside = [entry for entry in tree(tmp_path) if not entry.startswith("around/a/")]
    refused = 0

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(mutations, min_size=1, max_size=4))
    def read_mutated(changes):
        nonlocal refused
        damaged = mutated(content, changes)
        path.unlink()  # an earlier example's file may be locked, or hold other rights
        path.write_bytes(damaged)
        try:
            with time_limit(SECONDS):
                found = kind.read(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
        else:
            assert kind.check(found, good)

    with memory_limit(MEMORY_BYTES):
        read_mutated()
    assert refused > EXAMPLES / 10  # else nothing was damaged
    assert [entry for entry in tree(tmp_path) if not entry.startswith("around/a/")] == outside
