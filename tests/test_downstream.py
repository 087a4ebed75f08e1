"""Facts about downstream/: on generated speech that is easy to tell apart, and of the whole run on real speech."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from downstream import (
    abx,
    phone_classification,
    phone_recognition,
    run_all,
    search_recipe,
    speaker_identification,
    speaker_verification,
)
from downstream.probing.plan import Plan
from downstream.probing.report import CORPUS, Claim, Row
from downstream.probing.scoring import percent
from downstream.probing.speaker_report import speaker_lines
from downstream.probing.summary import Difference, speaker_claims
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.audio.frames import SAMPLE_RATE
from utils.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "librispeech_data" / "sample"
SPEAKERS = {"ann": (200, 400), "bob": (600, 900), "cid": (4000, 5000)}  # Hz at which their voices are loud
PHONES = {"SIL": (0, 60), "LOW": (100, 1000), "HIGH": (3000, 7000)}  # Hz
SECONDS = 0.2  # of each phone
QUICK = "--quick --time_shifts 3 --epochs 2 --num_workers 0 --lr_schedule cosine --rnn_dropout 0.1 --bucketing"


def say(phone: str, voice: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Noise in a phone's band, coloured by the speaker's voice."""
    samples = int(SECONDS * SAMPLE_RATE)
    spectrum = np.fft.rfft(random.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    low, high = PHONES[phone]
    loud = np.where((hz >= low) & (hz <= high), 1.0, 1e-3) * np.where((hz >= voice[0]) & (hz <= voice[1]), 4.0, 1.0)
    return np.fft.irfft(spectrum * loud)


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


def body(report):
    """A report without its head, which tells the command and the date."""
    _, after = report.read_text().split(CORPUS)
    return after


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
    quick = ["--seeds", "1", "--fractions", "0.5", "1", "--recogniser_epochs", "2", "--recogniser_hidden_size", "16",
             "--fine_tune_epochs", "1"]  # fmt: skip
    found = {}
    for more in ((), ("--checkpoint", checkpoint), ("--checkpoint", checkpoint, "--fine_tune", "--layer", "0")):
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


def test_more_seeds_are_more_of_every_probe(corpus, tmp_path):
    command = f"--data {corpus} --quick --time_shifts 3 --epochs 1 --hidden_size 8 --probe_epochs 1 --num_workers 0"
    command += " --fractions 1"
    for save_dir, all_seeds in {"grown": (2, 3), "at once": (3,)}.items():
        for seeds in all_seeds:
            run_all.main([*command.split(), "--save_dir", str(tmp_path / save_dir), "--seeds", str(seeds)])
    for result in ("speakers__log_mel__0.json", "speakers__ts3_epoch1__2.json"):
        grown, at_once = (
            json.loads((tmp_path / name / "results" / result).read_text()) for name in ("grown", "at once")
        )
        assert len(at_once["identification"]) == 3 and grown == at_once
    assert body(tmp_path / "grown/report/report.md") == body(tmp_path / "at once/report/report.md")


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


def test_recipes_are_trained_for_equal_time_ranked_and_kept(corpus, tmp_path, monkeypatch, capsys):
    def burn(trainings):
        subprocess.run([sys.executable, "-c", f"x = sum(range({trainings[0].epochs} * 20_000_000))"], check=True)

    with monkeypatch.context() as patch:
        patch.setattr("downstream.search_recipe.train", burn)
        one, four = (search_recipe.epochs_within(minutes, []) for minutes in (0.05, 0.2))
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
    with pytest.raises(InputError, match="holds other results: label_shift was None and is now 20"):
        search_recipe.main([*command, "--label_shift", "20"])
    with pytest.raises(InputError, match="already holds other files"):
        search_recipe.main([*command, "--save_dir", str(corpus)])
    assert not (corpus / "config.json").exists()
    with pytest.raises(SystemExit):
        search_recipe.parse_arguments(["--data", str(corpus), "--recipes", "bucketing"])
    assert "'bucketing' is not a line of NAME=VALUE" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def only_the_first_report_has_figures(monkeypatch):
    """All reports but that of `whole`, which is made before, go without figures: drawing them takes seconds."""
    monkeypatch.setattr("downstream.probing.plots.save_figure", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """run_all.py on the bundled sample, left alone."""
    directory = tmp_path_factory.mktemp("whole")
    run_all.main(["--data", str(SAMPLE), "--save_dir", str(directory), *QUICK.split()])
    return directory


def test_one_command_trains_probes_and_reports(whole):
    report = (whole / "report" / "report.md").read_text()
    title, date, command, settings = (line for line in report.partition(CORPUS)[0].splitlines() if line)
    assert title == "# What APC learns of sample" and re.search(r"on \d{4}-\d\d-\d\d by", date)
    given = ["--data", str(SAMPLE), "--save_dir", str(whole), *QUICK.split()]
    assert shlex.split(command) == ["python", "downstream/run_all.py", *given]
    assert "hidden_size 64, " in settings and "quick True, " in settings
    assert " Frames: front end released, norm global." in report
    rows = [line for line in report.splitlines() if line.startswith("| ") and "---" not in line]
    # header; classifiers on log Mel; two stacks; random and trained layers; two trainings
    assert len(rows[:-5]) == 1 + 3 + 2 + 3 + 3 + 1
    assert [row.split(" | ")[0] for row in rows[-4:]] == [
        "| log Mel",
        "| random APC",
        "| APC, time shift 3",
        "| APC, time shift 3, fine-tuned",
    ]
    assert len(list((whole / "results").glob("recognition__*__0.5__seed1.json"))) == 4
    assert len(list((whole / "results").glob("abx__*.json"))) == 3 + 2 * 3 + 3 + 1
    assert "mlp3 on log Mel" in report and "deviations of the difference" in report
    assert "Speaker tasks: none (the training set has one speaker)" in report
    for picture in ("recognition", "layers", "time_shifts", "epochs", "confusion", "prediction"):
        assert f"({picture}.png)" in report
        assert 5000 < (whole / "report" / f"{picture}.png").stat().st_size < 300_000
        assert f"({picture}.pdf)" in report and (whole / "report" / f"{picture}.pdf").stat().st_size < 400_000
    assert load_pretrained(whole / "models/apc-ts3.dir/apc-ts3__epoch_2.model").time_shift == 3
    summary = (whole / "report" / "summary.md").read_text()
    table = [line.split(" | ") for line in summary.splitlines() if line.startswith("| ") and "---" not in line]
    assert [row[0].removeprefix("| ") for row in table[1:]] == [
        "log Mel",
        "log Mel, mlp3",
        "log Mel, 5 before and 5 after",
        "log Mel, 10 before and 0 after",
        "random APC",
        "APC, time shift 3",
        "APC, time shift 3, fine-tuned",
    ]
    assert [row[2] for row in table[-3:]] == ["", "2", "2"] and all("±" in cell for cell in table[-1][7:9])
    layer = int(table[-2][1])
    found = {path.name: json.loads(path.read_text()) for path in (whole / "results").glob("phones__ts3_epoch2*.json")}
    names = f"ts3_epoch2__{layer}__linear__seed0.json", f"ts3_epoch2_seed1__{layer}__linear__seed1.json"
    assert table[-2][3] == percent([found[f"phones__{name}"]["frame_error"] for name in names])  # over trainings
    assert len([name for name in found if "_seed1__" in name]) == len({0, layer, 2})  # the best, first and last layer
    claims = [line for line in summary.splitlines() if line.startswith("- ")]
    assert len(claims) == 9 and all(line.startswith(("- **holds**: ", "- **does not hold**: ")) for line in claims[:-4])
    assert [line.startswith("- **not tested**") for line in claims].count(True) == 1  # speakers
    recipe = json.loads((whole / "models/apc-ts3.dir/config.json").read_text())
    assert (recipe["lr_schedule"], recipe["rnn_dropout"], recipe["bucketing"]) == ("cosine", 0.1, True)
    result = json.loads((whole / "results/phones__ts3_epoch2__1__linear__seed0.json").read_text())
    assert 0 < result["frame_error"] < 1 and np.sum(result["confusion"]) == 528  # frames of the test utterance


def test_killed_while_training_it_goes_on_and_nothing_tells(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("models", "report", "*__ts3_*"))
    command = ["--data", str(SAMPLE), "--save_dir", str(tmp_path), *QUICK.split()]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "downstream/run_all.py"), *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert any("epoch 1: training loss" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()  # ends when the training has ended as well
    assert not (tmp_path / "report").exists()
    run_all.main(command)
    for path in [*(whole / "results").iterdir(), *(whole / "models").glob("*/*.model")]:
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert body(tmp_path / "report/report.md") == body(whole / "report/report.md")
    assert (tmp_path / "report/summary.md").read_bytes() == (whole / "report/summary.md").read_bytes()


def test_results_that_are_there_are_not_made_again(whole, monkeypatch, capsys):
    for task in ("classify_phones", "abx_errors", "recognise"):
        monkeypatch.setattr(f"downstream.probing.study.{task}", None)
    monkeypatch.setattr("subprocess.Popen", None)
    command = ["--data", str(SAMPLE), "--save_dir", str(whole), *QUICK.split()]
    run_all.main([*command, "--fractions"])  # none: a report without recognition
    found = capsys.readouterr().out
    assert "**holds**" in found and "phone error rate" not in found.lower() and "fine-tuned" not in found
    run_all.main(command)
    assert "| random APC | 0 | linear |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--hidden_size 32", "hidden_size was 64 and is now 32"),
        ("--precision bf16", "precision was fp32 and is now bf16"),
        ("--epochs 3", "epochs was 2 and is now 3"),  # over which the learning rate falls along a cosine
    ],
)
def test_other_options_are_not_mixed_with_results_that_are_there(whole, option, change):
    with pytest.raises(InputError, match=f"holds other results: {change}; give another --save_dir"):
        run_all.main(["--data", str(SAMPLE), "--save_dir", str(whole), *QUICK.split(), *option.split()])


def test_a_random_network_is_decided_by_its_seed_alone():
    config = run_all.rnn_config(run_all.parse_arguments(["--data", ".", "--quick"]), 80)
    first, again, other = (run_all.random_model(config, seed).postnet.layer.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("best", "other", "holds"),
    [((0.40, 0.01), (0.45, 0.01), True), ((0.40, 0.02), (0.45, 0.02), False), ((0.45, 0.0), (0.40, 0.0), False)],
)
def test_a_claim_holds_where_the_difference_is_more_than_two_of_its_deviations(best, other, holds):
    assert Claim(Row("log Mel", "log_mel", 0), best, other).holds is holds
    errors = ([mean - std / 2**0.5, mean + std / 2**0.5] for mean, std in (best, other))  # of two seeds
    difference = Difference.between(*errors)
    assert difference.mean == pytest.approx(other[0] - best[0]) and (difference.low > 0) is holds


def test_new_speakers_are_verified_with_models_of_their_own_once(tmp_path, monkeypatch):
    random, data = np.random.default_rng(0), tmp_path / "data"
    for number in range(11):
        name, count = ("train-many", 1) if number < 6 else ("test-few", 3)
        folder, voice = data / name / f"s{number}", (300 + 400 * number, 600 + 400 * number)
        folder.mkdir(parents=True)
        for utterance in range(count):
            waveform = np.concatenate([say(phone, voice, random) for phone in random.permutation(list(PHONES))])
            waveform = 0.5 * waveform / np.abs(waveform).max()
            soundfile.write(folder / f"s{number}_{utterance}.wav", waveform, SAMPLE_RATE)
    command = f"--data . --speaker_data {data} --quick --time_shifts 3 --epochs 1 --hidden_size 8 --num_layers 2"
    args = run_all.parse_arguments([*command.split(), "--num_workers", "0", "--save_dir", str(tmp_path / "out")])
    plan = Plan([3], 1, [0, 1], 5, [1.0])
    study = run_all.verify_speakers(args, plan, torch.device("cpu"))
    text = "\n".join(speaker_lines(study, plan))
    assert "trained on 6 utterances of 6 speakers" in text and "105 pairs of 15 utterances of 5 speakers" in text
    assert "LDA learns from the test speakers who are not in the trial" in text
    assert text.count("| APC, time shift 3 |") == 2 and text.count("The first layer tells speakers apart") == 2
    claims = speaker_claims(plan, study)
    assert len(claims) == 2 and all("equal error rate of new speakers by" in line for line in claims)
    gains = [study.rate("ts3_epoch1", 1, score) - study.rate("ts3_epoch1", 0, score) for score in ("cosine", "lda")]
    assert ["**holds**" in line for line in claims] == [gain.interval[0] > 0 for gain in gains]
    result = json.loads((tmp_path / "out/speakers/results/verification__log_mel__0.json").read_text())
    assert len(result["lda"]["draws"]) == 1000 and 0 <= result["cosine"]["rate"] < 0.4

    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("downstream.probing.speaker_study.verification_scores", None)
    again = run_all.verify_speakers(args, plan, torch.device("cpu"))
    assert "\n".join(speaker_lines(again, plan)) == text
    shutil.copytree(data / "train-many/s0", data / "test-few/s0")
    (data / "test-few/s0/s0_0.wav").rename(data / "test-few/s0/s0_9.wav")
    with pytest.raises(InputError, match="speaker s0 is in train as well, but those of test must be new"):
        run_all.verify_speakers(args, plan, torch.device("cpu"))
