"""Facts about --check: it tells whether data fit a model, by losses that are those of the objective."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from preparing_runs import prepare_audio
from training_runs import train

from apc_model import APCModel
from load_pretrained_model import load_pretrained, main
from utils import RNNConfig
from utils.audio.front_ends import FRONT_ENDS
from utils.features.check import prediction_errors
from utils.system.errors import InputError
from utils.training.objective import apc_loss

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "librispeech_data" / "sample" / "audio"


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with a released name: time shift 3."""
    path = tmp_path / "bs32-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(APCModel(80, None, RNNConfig(80, 16, 2, 0.0, True)).state_dict(), path)
    return path


def test_its_errors_are_the_losses_of_training_and_of_plain_predictions(checkpoint):
    model, random = load_pretrained(checkpoint), np.random.default_rng(0)
    utterances = [random.normal(size=(length, 80)).astype(np.float32) for length in (50, 3, 7, 1700, 4)]
    errors = prediction_errors(model, utterances)
    kept = [torch.from_numpy(x[:1600]) for x in utterances if len(x) > 3]
    inputs, lengths = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True), torch.tensor([len(x) for x in kept])
    with torch.no_grad():
        assert errors.model == pytest.approx(apc_loss(model, inputs, lengths, 3).item(), rel=1e-5)
        assert errors.padded == pytest.approx(apc_loss(model, inputs, lengths, 3, "padded", 1600).item(), rel=1e-5)
    targets, mean = torch.cat([x[3:] for x in kept]), torch.cat(kept).mean(0)
    assert errors.persistence == pytest.approx((targets - torch.cat([x[:-3] for x in kept])).abs().mean().item())
    assert errors.mean == pytest.approx((targets - mean).abs().mean().item())
    assert errors.share == pytest.approx(lengths.sum().item() / (4 * 1600))


def test_a_map_of_speakers_is_for_the_frames_that_are_scaled_by_speaker(checkpoint, tmp_path, capsys):
    (tmp_path / "utt2spk").write_text("".join(f"{path.stem} one\n" for path in AUDIO.glob("dev/*.flac")))
    options = ["--checkpoint", str(checkpoint), "--check", str(AUDIO / "dev"), "--utt2spk", str(tmp_path / "utt2spk")]
    main(options)
    assert capsys.readouterr().out.count("front end ") >= len(FRONT_ENDS)
    with pytest.raises(InputError, match="a map of speakers is for --norm speaker, but --norm is utterance"):
        main([*options, "--norm", "utterance"])


def test_standard_input_is_read_once(checkpoint):
    command = [sys.executable, ROOT / "load_pretrained_model.py", "--checkpoint", checkpoint, "--check", "-"]
    with next(AUDIO.glob("dev/*.flac")).open("rb") as file:
        ran = subprocess.run(command, stdin=file, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.count("front end ") >= len(FRONT_ENDS), ran.stderr


def test_frames_that_never_change_have_no_lowest_ratio(checkpoint):
    errors = prediction_errors(load_pretrained(checkpoint), [np.zeros((50, 80), np.float32)])
    assert errors.persistence == 0 and errors.ratio == float("inf")


def test_a_model_that_predicts_nothing_is_refused(checkpoint, tmp_path):
    (tmp_path / "x.pt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(InputError, match="time shift is not known"):
        main(["--checkpoint", str(tmp_path / "x.pt"), "--residual", "--check", str(AUDIO / "dev")])
    with pytest.raises(InputError, match="no utterance has more than 3 frames"):
        prediction_errors(load_pretrained(checkpoint), [np.zeros((3, 80), np.float32)])


@pytest.mark.parametrize("name", ["released", "kaldi-hires"])
def test_the_frames_that_a_model_was_trained_on_have_the_lowest_ratio(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev"):
        prepare_audio(AUDIO / split, Path(split), "--front_end", name)
    data = "--librispeech_path . --train_split train --val_split dev --load_data_workers 0"
    model = "--rnn_hidden_size 64 --rnn_num_layers 1 --time_shift 3"
    train(monkeypatch, base=f"{data} {model} --epochs 15 --learning_rate 1e-2 --batch_size 1")
    main(["--checkpoint", "logs/foo.dir/foo__epoch_15.model", "--check", str(AUDIO)])
    said = capsys.readouterr().out
    assert f"lowest model/repeat: front end {name}, norm {FRONT_ENDS[name].norm}, as the model's" in said


def test_released_files_are_shown_beside_the_authors_figures_and_archives_in_one_row(checkpoint, capsys):
    main(["--checkpoint", str(checkpoint), "--check", str(AUDIO.parent / "sample-dev.blogmel.xz")])
    said = capsys.readouterr().out
    assert "the author's, with padding: 0.87 in training on train-clean-360, 0.51855 on dev-clean" in said
    assert said.count("unknown front end, unknown norm") == 1 and "kaldi-hires" not in said
    assert "(33% of the frames are true)" in said and "no better than the present frame" in said


def test_expected_losses_trains_continues_and_prints_a_row_for_each_set_and_time_shift(tmp_path, capfd):
    expected_losses = runpy.run_path(str(ROOT / "benchmarks" / "expected_losses.py"))["main"]
    command = ["--train", AUDIO / "train", "--test", AUDIO / "dev", "--save_dir", tmp_path / "out"]
    command += ["--time_shifts", "3", "--hidden_size", "8"]
    for epochs in ("1", "2"):
        expected_losses([*map(str, command), "--epochs", epochs])
        printed = capfd.readouterr()
        rows = [line.split(" | ") for line in printed.out.splitlines() if line.startswith("| 3 |")]
        assert [row[1].split()[0] for row in rows] == ["train", "test"] and [row[3] for row in rows] == ["0.87", "0.52"]
    assert "epoch 2:" in printed.err and "epoch 1:" not in printed.err
