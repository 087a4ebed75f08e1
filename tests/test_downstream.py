"""Facts about the probes of downstream/, on generated speech that is easy to tell apart."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from generated_speech import PHONES, SECONDS, SPEAKERS, say

from downstream import (
    abx,
    phone_classification,
    phone_recognition,
    run_all,
    search_recipe,
    speaker_identification,
    speaker_verification,
)
from downstream.probing.report import CORPUS
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.audio.frames import SAMPLE_RATE
from utils.system.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three speakers of three phones: DIR/audio/{train,dev,test}/<speaker>/*.wav and DIR/phones.ctm."""
    root, random, lines = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), []
    for name, count in {"train": 4, "dev": 1, "test": 3}.items():
        for speaker, voice in SPEAKERS.items():
            (root / "audio" / name / speaker).mkdir(parents=True)
            for number in range(count):
                phones = random.permutation(list(PHONES) * 2)
                waveform = np.concatenate([say(phone, voice, random) for phone in phones])
                utterance = f"{speaker}_{name}{number}"
                waveform = 0.5 * waveform / np.abs(waveform).max()
                soundfile.write(root / "audio" / name / speaker / f"{utterance}.wav", waveform, SAMPLE_RATE)
                lines += [f"{utterance} 1 {SECONDS * i:.2f} {SECONDS} {phone}\n" for i, phone in enumerate(phones)]
    (root / "phones.ctm").write_text("".join(lines))
    return root


def arguments(corpus, tmp_path, *more):
    """The command line of a probe's script."""
    return ["--data", str(corpus), "--save_dir", str(tmp_path / "out"), "--num_workers", "0",
            "--save", str(tmp_path / "results.json"), *map(str, more)]  # fmt: skip


def results(tmp_path):
    """What a probe's script wrote."""
    return json.loads((tmp_path / "results.json").read_text())


def test_phones_that_sound_apart_are_classified_and_the_window_explains_the_rest(corpus, tmp_path, capsys):
    phone_classification.main(arguments(corpus, tmp_path, "--context", 2, "--seeds", 2))
    (runs,) = results(tmp_path)["runs"].values()
    assert len(runs) == 2 and all(run["segment_error"] == 0 and run["frame_error"] < 0.1 for run in runs)
    assert np.sum(runs[0]["confusion"]) == 9 * 118  # all frames of the test set: 1.2 s are 118 windows
    printed = capsys.readouterr().out
    assert "log Mel, 2 frames before and 2 after, linear: error per frame" in printed
    assert "by phone, per frame: " in printed


def test_labels_that_are_late_cost_errors_until_they_are_shifted(corpus, tmp_path):
    late = tmp_path / "late.ctm"
    rows = [line.split() for line in (corpus / "phones.ctm").read_text().splitlines()]
    late.write_text("".join(f"{u} {c} {float(s) + 0.06:.2f} {d} {p}\n" for u, c, s, d, p in rows))
    errors = []
    for more in ((), ("--label_shift", 60)):
        phone_classification.main(arguments(corpus, tmp_path, "--seeds", 1, "--labels", late, *more))
        errors.append(results(tmp_path)["runs"]["log Mel"][0]["frame_error"])
    assert errors[0] > 0.2 and errors[1] < 0.1


def test_speakers_who_sound_apart_are_verified_and_identified(corpus, tmp_path):
    speaker_verification.main(arguments(corpus, tmp_path))
    assert results(tmp_path)["log Mel"]["lda"] == 0
    assert results(tmp_path)["log Mel"]["cosine"] < 0.3
    speaker_identification.main(arguments(corpus, tmp_path, "--seeds", 2))
    assert results(tmp_path)["log Mel"] == [0, 0]
    speaker_identification.main(arguments(corpus, tmp_path, "--seeds", 1, "--probe_learning_rate", 1e-30))
    assert results(tmp_path)["log Mel"] != [0]


def test_triphones_that_sound_apart_are_told_apart_without_training(corpus, tmp_path, capsys):
    items = tmp_path / "items"
    hires = "--front_end", "kaldi-hires", "--silence"
    abx.main(arguments(corpus, tmp_path, *hires, "--items", items))
    assert results(tmp_path)["log Mel"]["within"] < 0.1 and results(tmp_path)["log Mel"]["across"] < 0.1
    count = len(items.read_text().splitlines()) - 1
    assert f"test: {count} triphones without silence" in capsys.readouterr().out
    with pytest.raises(InputError, match="test has no triphones that differ in their middle phone only"):
        abx.main(arguments(corpus, tmp_path, *hires, "HIGH", "LOW"))


def test_phones_are_recognised_from_shares_of_the_training_set(corpus, tmp_path, capsys):
    checkpoint = tmp_path / "bs8-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(run_all.random_model(RNNConfig(80, 16, 2, 0.0, True), 0).state_dict(), checkpoint)
    quick = ["--seeds", "1", "--fractions", "0.5", "1", "--recogniser_epochs", "1", "--recogniser_hidden_size", "32",
             "--recogniser_min_steps", "20", "--recogniser_learning_rate", "1e-2", "--fine_tune_epochs", "2",
             "--encoder_learning_rate", "2e-3"]  # fmt: skip
    tuned = "--checkpoint", checkpoint, "--fine_tune", "--layer", "0", "--recogniser_epochs", "6", "--device", "cpu"
    found = {}
    for more in ((), ("--checkpoint", checkpoint), tuned):
        phone_recognition.main(arguments(corpus, tmp_path, *quick, *more))
        found |= results(tmp_path)
    assert list(found) == ["log Mel", "layer 1", "layer 0, fine-tuned"]
    for runs in found.values():
        assert [(run["fraction"], run["utterances"]) for run in runs] == [(1, 12), (0.5, 6)]
        assert all(0 <= run["error"] <= 1 for run in runs)
    assert found["layer 0, fine-tuned"][0]["error"] < 0.4
    assert "log Mel, 0.2 minutes labelled: phone error rate" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        phone_recognition.parse_arguments(["--data", str(corpus), "--fine_tune"])
    assert "--fine_tune needs a --checkpoint" in capsys.readouterr().err


def test_layers_of_a_checkpoint_are_probed_by_number_or_all(corpus, tmp_path):
    checkpoint = tmp_path / "bs8-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(run_all.random_model(RNNConfig(80, 16, 2, 0.0, True), 0).state_dict(), checkpoint)
    found = {}
    for layer in ("all", "-1"):
        speaker_verification.main(arguments(corpus, tmp_path, "--checkpoint", checkpoint, "--layer", layer))
        found[layer] = results(tmp_path)
    assert list(found["all"]) == ["layer 0", "layer 1"] and found["-1"] == {"layer 1": found["all"]["layer 1"]}


def test_what_a_probe_cannot_do_is_said_before_the_work(corpus, tmp_path):
    with pytest.raises(InputError, match="is a directory: give a file to write"):
        speaker_verification.main([*arguments(corpus, tmp_path)[:-1], str(tmp_path)])
    with pytest.raises(SystemExit):  # which layer of log Mel?
        speaker_verification.main(arguments(corpus, tmp_path, "--layer", "1"))
    assert not (tmp_path / "out").exists()
    checkpoint = tmp_path / "bs8-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(run_all.random_model(RNNConfig(80, 16, 2, 0.0, True), 0).state_dict(), checkpoint)
    with pytest.raises(InputError, match="--layer mean: probes read one layer"):
        speaker_verification.main(arguments(corpus, tmp_path, "--checkpoint", checkpoint, "--layer", "mean"))
    with pytest.raises(InputError, match="--layer mean: probes read one layer"):
        mean = ("--checkpoint", checkpoint, "--layer", "mean", "--fine_tune")
        phone_recognition.main(arguments(corpus, tmp_path, *mean))
    speaker_verification.main([*arguments(corpus, tmp_path)[:-1], str(tmp_path / "new" / "results.json")])
    assert (tmp_path / "new" / "results.json").exists()


def test_one_seed_tells_no_deviation_and_is_refused(corpus, capsys):
    with pytest.raises(SystemExit):
        run_all.parse_arguments(["--data", str(corpus), "--seeds", "1"])
    assert "--seeds and --training_seeds must be 2 at least" in capsys.readouterr().err


def test_more_seeds_are_more_of_every_probe(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("downstream.probing.plots.save_figure", lambda *_: None)  # drawing takes seconds
    command = f"--data {corpus} --quick --time_shifts 3 --epochs 1 --hidden_size 8 --num_layers 1 --num_workers 0"
    command += " --probe_epochs 1 --fractions 1"
    for save_dir, all_seeds in {"grown": (2, 3), "at once": (3,)}.items():
        for seeds in all_seeds:
            run_all.main([*command.split(), "--save_dir", str(tmp_path / save_dir), "--seeds", str(seeds)])
    for result in ("speakers__log_mel__0.json", "speakers__ts3_epoch1__0.json"):
        grown, at_once = (
            json.loads((tmp_path / name / "results" / result).read_text()) for name in ("grown", "at once")
        )
        assert len(at_once["identification"]) == 3 and grown == at_once
    reports = [(tmp_path / name / "report/report.md").read_text().split(CORPUS)[1] for name in ("grown", "at once")]
    assert reports[0] == reports[1]


def test_a_held_out_speaker_is_verified_but_cannot_be_identified(corpus, tmp_path):
    held_out = arguments(corpus, tmp_path, "--held_out_speakers", "bob", "cid")
    speaker_verification.main(held_out)
    assert results(tmp_path)["log Mel"]["lda"] is None  # one speaker is left to learn from
    with pytest.raises(InputError, match="the training set has one speaker"):
        speaker_identification.main(held_out)


def test_a_set_without_labels_is_one_line(corpus, tmp_path):
    labels = tmp_path / "other.ctm"
    labels.write_text("someone 1 0 1 A\n")
    with pytest.raises(
        InputError, match=r"other\.ctm has no label for the 12 utterances of .*train, such as ann_train0"
    ):
        phone_classification.main(arguments(corpus, tmp_path, "--labels", labels))


def test_what_of_a_corpus_cannot_be_read_is_skipped_or_stops_and_is_reported(corpus, tmp_path, capsys):
    odd = tmp_path / "odd"
    shutil.copytree(corpus, odd)
    (odd / "audio/train/ann/bad.wav").write_bytes(b"RIFF")
    (odd / "audio/dev/bob/other.m4a").touch()
    with pytest.raises(InputError, match=r"bad\.wav: utterance bad"):
        speaker_verification.main(arguments(odd, tmp_path))
    speaker_verification.main(arguments(odd, tmp_path, "--on_error", "skip"))
    assert results(tmp_path)["log Mel"]["lda"] == 0
    printed = capsys.readouterr().out
    assert f"train: 1 utterances skipped: {tmp_path / 'out/prepared/train/skipped.txt'} lists them" in printed
    assert printed.count("dev: 1 files not read: 1 .m4a") == 1


def test_recipes_are_trained_for_equal_time_ranked_and_kept(corpus, tmp_path, tmp_path_factory, monkeypatch, capsys):
    def burn(trainings):
        subprocess.run([sys.executable, "-c", f"x = sum(range({trainings[0].epochs} * 20_000_000))"], check=True)

    with monkeypatch.context() as patch:
        patch.setattr("downstream.search_recipe.train", burn)
        one, four = (search_recipe.epochs_within(minutes, [], torch.device("cpu")) for minutes in (0.05, 0.2))
    assert 1 < one < four < 8 * one
    tiny = "rnn_hidden_size=8 rnn_num_layers=1 epochs=1"
    command = ["--data", str(corpus), "--save_dir", str(tmp_path), "--num_workers", "0", "--probe_epochs", "2"]
    command += ["--recipes", f"{tiny} norm=speaker bucketing=on"]
    search_recipe.main(command)
    table = capsys.readouterr().out
    assert re.search(r"^\| rnn_hidden_size=8 .*bucketing=on \| 1 \| \d\.\d{3} \| 0 \| \d+\.\d\d \|$", table, re.M)
    (model,) = tmp_path.glob("models/*.dir/*__best.model")
    assert load_pretrained(model).frame_spec.describe() == "front end released, norm speaker"
    monkeypatch.setattr("downstream.search_recipe.train", None)
    search_recipe.main(command)  # nothing is trained again
    assert capsys.readouterr().out == table
    other = shutil.copytree(corpus, tmp_path_factory.mktemp("other") / "corpus")
    for path in other.rglob("*.wav"):
        waveform, sample_rate = soundfile.read(path)
        soundfile.write(path, waveform / 2, sample_rate)
    command[1] = str(other)
    with pytest.raises(InputError, match="prepared/train was made from other audio"):
        search_recipe.main(command)
    shutil.rmtree(tmp_path / "released-speaker/prepared")
    with pytest.raises(InputError, match="released-speaker holds models and results of other utterances"):
        search_recipe.main(command)
    command[1] = str(corpus)
    with pytest.raises(InputError, match="holds other results: label_shift was None and is now 20"):
        search_recipe.main([*command, "--label_shift", "20"])
    with pytest.raises(InputError, match="already holds other files"):
        search_recipe.main([*command, "--save_dir", str(corpus)])
    assert not (corpus / "config.json").exists()
    for recipe, problem in (
        ("bucketing", "is not a line of NAME=VALUE"),
        ("epochs=x", "has no whole number of epochs"),
        ("norm=gobal", "has a norm that is not one of global, "),
        ("front_end=foo", "has a front_end that is not one of released, "),
        ("seed=1", "has seed, which is no part of a recipe"),
        ("patience=2", "has patience, which is no part of a recipe"),
    ):
        with pytest.raises(SystemExit):
            search_recipe.parse_arguments(["--data", str(corpus), "--recipes", recipe])
        assert f"'{recipe}' {problem}" in capsys.readouterr().err
