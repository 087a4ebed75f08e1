"""Facts about loading checkpoints and extracting features."""

import argparse
import io
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_prepared
from refusals import RunsCode
from test_apc_model import HIDDEN, MEL, make_batch, make_models

from datasets import LibriSpeech
from load_pretrained_model import load_pretrained
from utils.corpus.prepared import load_lengths, load_tensor
from utils.system.errors import InputError
from utils.training.arguments import SaveInterval
from utils.training.checkpointing import Checkpointer
from utils.training.distributed import Ranks
from utils.training.experiment import NullExperiment
from utils.training.progress import Progress

SCRIPT = Path(__file__).parent.parent / "load_pretrained_model.py"


def s3prl_names(model):
    """A model's weights under the names that s3prl gives them."""
    return {
        name.replace("rnns.", "rnn_layers.").replace("postnet.layer.", "postnet."): value
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
@pytest.mark.parametrize("prenet_layers", [0, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_everything_is_found_from_the_weights_and_the_released_name(
    tmp_path, rnn_type, prenet_layers, layers, residual
):
    model, _ = make_models(rnn_type, prenet_layers, residual, layers=layers)
    path = tmp_path / f"bs32-rhl{layers}-rhs{HIDDEN}-rd0-adam{'-res' if residual else ''}-ts3.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)  # PyTorch 1.0's format
    loaded = load_pretrained(path)
    assert not loaded.training and loaded.time_shift == 3
    for ours, theirs in zip(loaded(*make_batch()), model(*make_batch()), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loaded_model_can_be_trained_on(tmp_path):
    model, _ = make_models()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_pretrained(tmp_path / "m.pt", residual=True).train()
    loaded(*make_batch())[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]


def test_the_cells_pytorch_runs_see_the_loaded_weights(tmp_path):
    """On a GPU the layers are PyTorch's own, with the list of weights they keep of themselves."""
    model, _ = make_models(layers=1)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_pretrained(tmp_path / "m.pt")
    x = torch.randn(3, 1, MEL)
    assert torch.equal(loaded.rnns[0](x)[0], model.rnns[0](x)[0])


@pytest.mark.parametrize("residual", [False, True])
def test_config_json_beside_a_checkpoint_tells_residual_and_time_shift(tmp_path, residual):
    model, _ = make_models(residual=residual)
    torch.save(model.state_dict(), tmp_path / "foo__epoch_7.model")
    (tmp_path / "config.json").write_text(
        json.dumps({"experiment_name": "foo", "rnn_residual": residual, "time_shift": 5})
    )
    loaded = load_pretrained(tmp_path / "foo__epoch_7.model")
    assert loaded.time_shift == 5 and loaded.rnn_config.residual is residual
    assert torch.equal(loaded(*make_batch())[1], model(*make_batch())[1])


def test_an_s3prl_checkpoint_loads_and_its_residual_starts_at_layer_one(tmp_path):
    model, _ = make_models(prenet_layers=0, hidden=MEL)  # where layer 0 could have a residual too
    state = {name: value.squeeze(-1) for name, value in s3prl_names(model).items()}
    config = {"apc": {"n_future": 5, "paras": {"residual": True, "hidden_size": MEL}}}
    saved = {"model": state, "config": config, "Args": argparse.Namespace(seed=1)}
    torch.save(saved, tmp_path / "apc.ckpt")
    loaded = load_pretrained(tmp_path / "apc.ckpt")
    assert loaded.time_shift == 5 and loaded.rnn_config.residual and loaded.rnn_config.first_residual_layer == 1
    inputs, lengths = make_batch()
    expected = model(inputs, lengths)[1][0] - inputs
    torch.testing.assert_close(loaded(inputs, lengths)[1][0], expected)


def test_an_s3prl_checkpoint_of_data_parallel_loads(tmp_path):
    model, _ = make_models()
    state = {f"module.{name}": value for name, value in s3prl_names(model).items()}
    torch.save({"model": state, "config": {"residual": True}}, tmp_path / "apc.ckpt")
    torch.testing.assert_close(load_pretrained(tmp_path / "apc.ckpt")(*make_batch()), model(*make_batch()))


class Odd:
    """What a checkpoint's options may hold, and no reader of weights knows."""


def test_an_s3prl_checkpoint_loads_whatever_stands_beside_its_weights(tmp_path):
    """Its optimizer's state, its command line as a Namespace, paths, numpy's numbers."""
    model, _ = make_models()
    model(*make_batch())[0].sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    saved = {
        "Optimizer": optimizer.state_dict(), "Step": 7, "model": s3prl_names(model),
        "Args": argparse.Namespace(expdir=Path("exp"), seed=1, device="cuda", gpu=torch.device("cuda")),
        "Config": {"model": {"method": "apc", "n_future": 3, "paras": {"residual": True, "num_layers": 3}},
                   "lr": np.float64(1e-3)},
    }  # fmt: skip
    for is_zip in (True, False):
        torch.save(saved, tmp_path / "apc.ckpt", _use_new_zipfile_serialization=is_zip)
        loaded = load_pretrained(tmp_path / "apc.ckpt")
        assert loaded.time_shift == 3 and loaded.rnn_config.residual and loaded.rnn_config.first_residual_layer == 1
        torch.testing.assert_close(loaded(*make_batch()), model(*make_batch()))
    del saved["Config"]
    saved["Args"].residual = False
    torch.save(saved, tmp_path / "apc.ckpt")
    assert load_pretrained(tmp_path / "apc.ckpt").rnn_config.residual is False
    torch.save(saved | {"Args": Odd()}, tmp_path / "apc.ckpt")
    with pytest.raises(InputError, match=r"apc\.ckpt would run code \(test_load_pretrained\.Odd\)"):
        load_pretrained(tmp_path / "apc.ckpt")


def as_pytorch_1_on_cuda(state):
    """A state dict's file as PyTorch 1.0 wrote it where the tensors were on a GPU."""
    file = io.BytesIO()
    torch.save(OrderedDict(state), file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    assert content.count(b"ctorch\nFloatStorage\n") == 1 and b"X\3\0\0\0cpuq" in content
    content = content.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    return content.replace(b"X\3\0\0\0cpuq", b"X\6\0\0\0cuda:0q")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_file_saved_from_a_gpu_loads_on_a_machine_without_one(tmp_path, prefix):
    model, _ = make_models()
    path = tmp_path / "bs32-rhl3-rhs9-rd0-adam-res-ts20.pt"
    path.write_bytes(as_pytorch_1_on_cuda({f"{prefix}{name}": value for name, value in model.state_dict().items()}))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # that is how PyTorch reads it where one is careless
            torch.load(path, weights_only=True)
    loaded = load_pretrained(path)
    assert loaded.time_shift == 20 and next(loaded.parameters()).device.type == "cpu"
    assert torch.equal(loaded(*make_batch())[1], model(*make_batch())[1])


def test_an_explicit_argument_wins_over_the_files_name(tmp_path):
    model, _ = make_models(residual=False)
    path = tmp_path / "bs32-rhl3-rhs9-rd0-adam-res-ts20.pt"
    torch.save(model.state_dict(), path)
    loaded = load_pretrained(path, residual=False, time_shift=5)
    assert loaded.time_shift == 5 and torch.equal(loaded(*make_batch())[1], model(*make_batch())[1])


def test_a_training_state_is_a_checkpoint_too(tmp_path):
    model, _ = make_models()
    model(*make_batch())[0].sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    parts = Progress(step=4), model, optimizer, torch.amp.GradScaler("cpu", enabled=False)
    checkpointer = Checkpointer(NullExperiment(), Ranks("cpu"), SaveInterval("10m"), None, *parts)
    model.time_shift = 2
    state = checkpointer.state_dict()
    torch.save(state, tmp_path / "alone.state")
    del state["apc_config"]  # as before it was there
    torch.save(state, tmp_path / "foo__step_4.state")
    config = {"experiment_name": "foo", "rnn_residual": True, "time_shift": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("alone.state", "foo__step_4.state"):
        loaded = load_pretrained(tmp_path / name)
        assert loaded.time_shift == 2 and torch.equal(loaded(*make_batch())[1], model(*make_batch())[1])


@pytest.mark.parametrize("prenet_layers", [0, 2])
def test_an_encoder_without_prediction_layer_gives_features_and_says_so_once(tmp_path, prenet_layers):
    model, _ = make_models(prenet_layers=prenet_layers)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("postnet.")}
    path = tmp_path / "bs32-rhl3-rhs9-rd0-adam-res-ts3.pt"
    torch.save(state, path)
    with pytest.warns(UserWarning, match=r"ts3\.pt has no prediction layer.*predicted is None") as told:
        loaded = load_pretrained(path)
    assert len(told) == 1
    predicted, feats = loaded(*make_batch())
    assert predicted is None and torch.equal(feats, model(*make_batch())[1])
    assert set(loaded.state_dict()) == set(state)


def test_where_nothing_tells_of_a_residual_the_user_is_asked(tmp_path):
    model, _ = make_models()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"mine\.pt.*residual=True or False; --residual or --no-residual"):
        load_pretrained(tmp_path / "mine.pt")
    assert load_pretrained(tmp_path / "mine.pt", residual=False, time_shift=2).time_shift == 2


@pytest.mark.parametrize("residual", [False, True])
def test_a_checkpoint_of_another_project_loads_where_residual_is_said(tmp_path, residual):
    """LiveSpeechPortraits and others save the released network under names of their own."""
    model, _ = make_models(residual=residual)
    torch.save(model.state_dict(), tmp_path / "APC_epoch_160.model")
    with pytest.raises(InputError, match=r"APC_epoch_160\.model.*residual=True or False"):
        load_pretrained(tmp_path / "APC_epoch_160.model")
    loaded = load_pretrained(tmp_path / "APC_epoch_160.model", residual=residual)
    assert loaded.frame_spec.front_end is None
    for ours, theirs in zip(loaded(*make_batch()), model(*make_batch()), strict=True):
        assert torch.equal(ours, theirs)


def spoilt(state):
    """Checkpoints that must be refused, each with what the refusal names."""
    without = {k: v for k, v in state.items() if k != "rnns.1.bias_hh_l0"}
    yield without, r"rnns\.1\.bias_hh_l0 is nothing in the checkpoint, and \(27,\) in the model"
    yield state | {"extra": torch.ones(2)}, r"extra is \(2,\) in the checkpoint, and nothing"
    wrong = state | {"rnns.1.weight_ih_l0": torch.ones(27, 8)}
    yield wrong, r"rnns\.1\.weight_ih_l0 is \(27, 8\) in the checkpoint, and \(27, 9\)"
    yield state | {"rnns.0.weight_hh_l0": torch.ones(18, 9)}, r"rnns\.0\.weight_hh_l0 has shape \(18, 9\)"
    yield state | {"rnns.0.weight_ih_l0": torch.ones(27, 7)}, r"rnns\.0\.weight_ih_l0 has shape \(27, 7\)"
    yield state | {"rnns.0.weight_hh_l0": torch.ones(27, 0)}, r"rnns\.0\.weight_hh_l0 has shape \(27, 0\)"
    yield state | {"rnns.0.weight_hh_l0": "nine"}, "rnns.0.weight_hh_l0"
    yield {"encoder.weight": torch.ones(2, 2)}, r"it has no rnns\.0\.weight_hh_l0"
    yield [1, 2], "holds a list"
    huge = {f"rnns.{i}.bias_hh_l0": torch.ones(1) for i in range(1, 5000)}
    yield state | huge, r"rnns\.1"
    yield state | {"rnns.0.weight_hh_l0": torch.ones(1, 1).expand(3_000_000, 1_000_000)}, "larger than the file"


@pytest.mark.parametrize("number", range(11))
def test_another_model_is_refused_naming_the_key_and_both_shapes(tmp_path, number):
    model, _ = make_models()
    state, message = list(spoilt(model.state_dict()))[number]
    torch.save(state, tmp_path / "bs32-rhl3-rhs9-rd0-adam-res-ts1.pt")
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path / "bs32-rhl3-rhs9-rd0-adam-res-ts1.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path, suffix, number):
    weights = make_models()[0].state_dict()
    weights["rnns.1.bias_hh_l0"] = weights["rnns.1.bias_hh_l0"].double().index_fill(0, torch.tensor(2), number)
    path = tmp_path / f"x-res-ts1{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError, match=rf"ts1\{suffix}: rnns\.1\.bias_hh_l0 has a weight that is NaN, infinite"):
        load_pretrained(path, residual=True)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "code", "nested code", "text"])
def test_a_damaged_checkpoint_is_refused_by_name_and_runs_nothing(tmp_path, damage):
    path, proof = tmp_path / "x-res-ts1.pt", tmp_path / "proof"
    model, _ = make_models()
    torch.save(model.state_dict(), path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("cut", "empty", "text"):
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    else:
        torch.save(RunsCode(proof) if damage == "code" else {"model": RunsCode(proof)}, path)
    with pytest.raises(InputError, match=r"x-res-ts1\.pt"):
        load_pretrained(path)
    assert not proof.exists()


def run_script(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("layer", "shape"), [("-1", (HIDDEN,)), ("0", (HIDDEN,)), ("all", (3, HIDDEN))])
def test_features_are_those_of_forward_trimmed_to_the_true_length(prepared, tmp_path, layer, shape):
    model, _ = make_models()
    path = tmp_path / "bs4-rhl3-rhs9-rd0-adam-res-ts1.pt"
    torch.save(model.state_dict(), path)
    out = tmp_path / "features"
    result = run_script(
        "--checkpoint", path, "--data", prepared, "--save_dir", out, "--layer", layer, "--batch_size", 4
    )
    assert result.returncode == 0, result.stderr
    assert load_lengths(out) == load_lengths(prepared)
    dataset = LibriSpeech(prepared)
    for index, (x, length) in enumerate(dataset):
        saved = load_tensor(out / f"{dataset.utterance(index)}.pt", dims=3 if layer == "all" else 2)
        _, feats = model(x[None], [length])
        expected = feats[:, 0, :length] if layer == "all" else feats[int(layer), 0, :length]
        assert saved.shape == (*shape[:-1], length, HIDDEN)
        torch.testing.assert_close(saved, expected)


def test_the_data_are_never_overwritten_by_their_features(prepared, tmp_path):
    model, _ = make_models()
    path = tmp_path / "bs4-rhl3-rhs9-rd0-adam-res-ts1.pt"
    torch.save(model.state_dict(), path)
    (prepared / "made_from.json").write_text('{"archives": [], "max_seq_len": 40, "norm": "none"}')
    before = {file.name: file.read_bytes() for file in prepared.glob("[!.]*")}
    again = tmp_path / "again"
    again.symlink_to(prepared)
    for save_dir in (prepared, again):
        result = run_script("--checkpoint", path, "--data", prepared, "--save_dir", save_dir, "--overwrite")
        assert result.returncode == 2 and "give another directory" in result.stderr
    other = make_prepared(tmp_path / "other", [4, 5], seed=3)
    result = run_script("--checkpoint", path, "--data", other, "--save_dir", prepared, "--overwrite")
    assert result.returncode == 2 and "made by another script" in result.stderr
    assert {file.name: file.read_bytes() for file in prepared.glob("[!.]*")} == before


def test_a_users_mistake_is_one_line_and_exit_code_2(prepared, tmp_path):
    model, _ = make_models()
    path = tmp_path / "a-res-ts1.pt"
    path.write_bytes(b"no checkpoint")
    good = tmp_path / "bs4-rhl3-rhs9-rd0-adam-res-ts1.pt"
    torch.save(model.state_dict(), good)
    for arguments in (
        ("--checkpoint", path),
        ("--checkpoint", tmp_path / "none.pt"),
        ("--checkpoint", good, "--data", tmp_path, "--save_dir", tmp_path / "f"),
        ("--checkpoint", good, "--data", prepared, "--save_dir", tmp_path / "f", "--layer", "7"),
        ("--checkpoint", good, "--data", prepared, "--save_dir", "/proc/none"),
    ):
        result = run_script(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
