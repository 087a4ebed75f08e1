"""Facts about mixed precision: it learns as float32 does, and what is saved is float32."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from preparing_runs import prepare
from training_runs import SMALL, TOO_LARGE, curves, made, stop_at, train

import train_apc
from utils.corpus.prepared import load_tensor, save_tensor
from utils.rnn.precision import scales_gradients
from utils.rnn.products import has_bf16_products, matmul_library
from utils.system.errors import InputError, Stopped
from utils.system.untrusted import load_untrusted

SAMPLE = Path(__file__).parent.parent / "librispeech_data/sample"
LOGS = Path("logs")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The bundled recordings, prepared."""
    directory = tmp_path_factory.mktemp("sample")
    for split in ("train", "dev"):
        prepare(SAMPLE / f"sample-{split}.blogmel.xz", directory / split)
    return directory


def validation_loss(name):
    return curves(LOGS / f"{name}.dir")["epoch/val_loss"][-1][1]


def last_state():
    """The last that the experiment foo saved."""
    (*_, last) = sorted((LOGS / "foo.dir").glob("*.state"), key=lambda path: int(re.findall(r"\d+", path.name)[-1]))
    return load_untrusted(last)


def test_bf16_and_fp16_reach_the_validation_loss_of_fp32_on_real_speech(sample, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    base = (
        f"--librispeech_path {sample} --train_split train --val_split dev --rnn_hidden_size 32 "
        "--prenet_num_layers 1 --rnn_residual --batch_size 2 --epochs 6 --learning_rate 2e-2 --load_data_workers 0"
    )
    for precision in ("fp32", "bf16", "fp16"):
        train(monkeypatch, "--precision", precision, "--experiment_name", precision, base=base)
    assert curves(LOGS / "fp32.dir")["epoch/val_loss"][0][1] > 1.1 * validation_loss("fp32")
    for precision in ("bf16", "fp16"):
        assert validation_loss(precision) == pytest.approx(validation_loss("fp32"), rel=0.02)
        is_fp32 = precision == "bf16" and not has_bf16_products()
        assert (validation_loss(precision) == validation_loss("fp32")) == is_fp32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_saved_is_float32_and_resumes_bit_for_bit(workplace, monkeypatch, precision):
    options = ("--precision", precision, "--prenet_num_layers", 1, "--rnn_dropout", 0.3)
    train(monkeypatch, *options, "--experiment_name", "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            train(patch, *options, "--experiment_name", "cut")
    for path in (LOGS / "cut.dir").glob("*.model"):
        assert {value.dtype for value in torch.load(path, weights_only=True).values()} == {torch.float32}
    train(monkeypatch, *options, "--experiment_name", "cut", "--resume")
    assert made("whole") == made("cut")
    with pytest.raises(InputError, match=f"precision was {precision} and is now fp32"):
        train(monkeypatch, "--prenet_num_layers", 1, "--rnn_dropout", 0.3, "--experiment_name", "cut", "--resume")


def test_bf16_scales_gradients_on_a_gpu_and_resumes_there_what_a_cpu_began(workplace, monkeypatch):
    devices = map(torch.device, ("cuda", "cuda:1", "cpu"))
    assert [scales_gradients("bf16", device) for device in devices] == [True, True, False]
    train(monkeypatch, "--precision", "bf16", "--epochs", 1, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(train_apc, "scales_gradients", lambda precision, device: True)
        train(patch, "--precision", "bf16", "--epochs", 2, "--device", "cpu", "--resume")
    assert last_state()["scaler"]["scale"] >= 1
    train(monkeypatch, "--precision", "bf16", "--epochs", 3, "--device", "cpu", "--resume")


def test_a_gradient_scale_that_is_too_large_is_lowered_and_no_error(workplace, monkeypatch):
    make_scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: make_scaler(*a, init_scale=2.0**40, **k))
    train(monkeypatch, "--precision", "fp16", "--epochs", 20, "--prenet_num_layers", 1)
    state = last_state()
    assert 1 <= state["scaler"]["scale"] < 2.0**40
    steps = [step for step, _ in curves(LOGS / "foo.dir")["step/loss"]]
    assert 50 < len(steps) < 100 and steps[-1] == 100
    assert "skipped step" not in (LOGS / "foo.dir/foo.log").read_text()


def test_data_that_are_not_finite_are_an_error_in_fp16_too(workplace, monkeypatch):
    path = Path("data/train/spk2-0017.pt")
    save_tensor(path, load_tensor(path).index_fill(0, torch.tensor(3), TOO_LARGE))
    with pytest.raises(InputError, match=r"loss inf.*spk2-0017"):
        train(monkeypatch, "--precision", "fp16", "--device", "cpu")


def test_the_log_says_in_which_precision(workplace, monkeypatch):
    train(monkeypatch, "--precision", "bf16", "--epochs", 0, "--device", "cpu")
    precision = (
        r"bf16 \(oneDNN\)" if has_bf16_products() else r"fp32 \((mkl|onednn): this CPU has no products in bfloat16\)"
    )
    assert re.search(f"parameters, {precision}, 1 process on cpu", (LOGS / "foo.dir/foo.log").read_text())
    assert json.loads((LOGS / "foo.dir/config.json").read_text())["matmul"] == matmul_library()
    assert "--precision" not in SMALL and train_apc.parse_arguments([]).precision == "fp32"
