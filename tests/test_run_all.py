"""Facts about the whole run on real speech, and of its parts."""

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
from generated_speech import PHONES, say

from downstream import run_all
from downstream.probing.corpus import record_corpus
from downstream.probing.plan import Plan
from downstream.probing.report import CORPUS
from downstream.probing.scoring import Difference, percent, verdict
from downstream.probing.speaker_report import speaker_lines
from downstream.probing.summary import speaker_claims
from load_pretrained_model import load_pretrained
from utils.audio.frames import SAMPLE_RATE
from utils.rnn.precision import available_precision
from utils.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "librispeech_data" / "sample"
QUICK = "--quick --time_shifts 3 --epochs 2 --num_workers 0 --lr_schedule cosine --rnn_dropout 0.1 --bucketing"


def body(report):
    """A report without its head, which tells the command and the date."""
    _, after = report.read_text().split(CORPUS)
    return after


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
    assert "Unseen speakers" not in (whole / "report" / "summary.md").read_text()
    assert "- than of mlp3 on log Mel: **" in report and "; lower by " in report
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
    assert len(claims) == 9 and all(line.startswith(("- **holds**: ", "- **does not hold** (")) for line in claims[:-4])
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
        ("--precision fp16", f"precision was {available_precision('bf16', torch.device('cpu'))} and is now fp16"),
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
    [
        ((0.40, 0.01), (0.45, 0.01), True),
        ((0.40, 0.02), (0.45, 0.02), False),
        ((0.45, 0.0), (0.40, 0.0), False),
        ((1.0, 0.0), (1.0, 0.0), False),
    ],
)
def test_a_claim_holds_where_the_difference_is_more_than_two_of_its_deviations(best, other, holds):
    errors = ([mean - std / 2**0.5, mean + std / 2**0.5] for mean, std in (best, other))  # of two seeds
    difference = Difference.between(*errors)
    assert difference.mean == pytest.approx(other[0] - best[0]) and (difference.verdict == "**holds**") is holds


def test_where_seeds_decide_the_same_for_two_systems_their_differences_are_judged():
    """Each seed draws other speech, which is as hard for one system as for the other."""
    errors, others = [0.3, 0.4, 0.5], [0.34, 0.45, 0.54]
    assert Difference.between(errors, others).low < 0 < Difference.by_seed(errors, others).low
    assert Difference.by_seed(errors, others).mean == pytest.approx(0.13 / 3)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.1, 0.3), "**holds**"),
        ((-0.1, 0.3), "**does not hold** (undecided)"),
        ((-0.3, -0.1), "**does not hold** (contradicted)"),
    ],
)
def test_a_claim_that_does_not_hold_is_told_from_one_whose_opposite_holds(interval, words):
    assert verdict(*interval) == words


def test_labels_too_few_to_recognise_stop_the_run_before_all_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "probe_baselines", None)
    alignments = (SAMPLE / "phones.ctm").read_text().splitlines()
    phones = tmp_path / "phones.ctm"
    phones.write_text("".join(f"{line}\n" for line in alignments[::3]))
    command = ["--data", str(SAMPLE), "--labels", str(phones), "--save_dir", str(tmp_path / "out"), *QUICK.split()]
    with pytest.raises(InputError, match="has no phones for most of the frames of any utterance of"):
        run_all.main(command)


def test_a_corpus_of_speakers_that_is_of_no_use_stops_the_run_before_all_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "probe_baselines", None)
    with pytest.raises(InputError, match="nowhere"):
        run_all.main(
            ["--data", str(SAMPLE), "--speaker_data", "nowhere", "--save_dir", str(tmp_path / "out"), *QUICK.split()]
        )


def test_unseen_speakers_are_verified_with_models_of_their_own_once(tmp_path, monkeypatch):
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
    study = run_all.speaker_study(args, torch.device("cpu"))
    run_all.verify_speakers(study, args, plan)
    text = "\n".join(speaker_lines(study, plan))
    assert (
        "trained on 5 utterances of 5 speakers" in text
        and "validated on 1 utterances of 1 speakers" in text
        and "105 pairs of 15 utterances of 5 speakers" in text
    )
    assert "Speakers are identified by the parent directory." in text
    assert "LDA learns from the test speakers who are not in the trial" in text
    assert (
        text.count("| APC, time shift 3 |") == 2
        and text.count("The first layer carries more information about speakers") == 2
    )
    claims = speaker_claims(plan, study)
    assert len(claims) == 2 and all("equal error rate of unseen speakers by" in line for line in claims)
    gains = [study.rate("ts3_epoch1", 1, score) - study.rate("ts3_epoch1", 0, score) for score in ("cosine", "lda")]
    assert ["**holds**" in line for line in claims] == [gain.interval[0] > 0 for gain in gains]
    result = json.loads((tmp_path / "out/speakers/results/verification__log_mel__0.json").read_text())
    assert len(result["lda"]["draws"]) == 1000 and 0 <= result["cosine"]["rate"] < 0.4

    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("downstream.probing.speaker_study.verification_scores", None)
    again = run_all.speaker_study(args, torch.device("cpu"))
    run_all.verify_speakers(again, args, plan)
    assert "\n".join(speaker_lines(again, plan)) == text
    mended = study.corpus._replace(speakers={name: f"new-{of}" for name, of in study.corpus.speakers.items()})
    with pytest.raises(InputError, match=r"out/speakers holds models and results of other .*; remove it"):
        record_corpus(tmp_path / "out/speakers", mended)
    shutil.rmtree(tmp_path / "out/speakers/prepared")
    run_all.speaker_study(args, torch.device("cpu"))  # makes the same frames again
    shutil.rmtree(tmp_path / "out/speakers/prepared")
    repaired = data / "test-few/s9/s9_0.wav"
    soundfile.write(repaired, soundfile.read(repaired)[0] / 2, SAMPLE_RATE)
    with pytest.raises(InputError, match=r"out/speakers holds models and results of other .* speakers or frames"):
        run_all.speaker_study(args, torch.device("cpu"))
    shutil.copytree(data / "train-many/s0", data / "test-few/s0")
    (data / "test-few/s0/s0_0.wav").rename(data / "test-few/s0/s0_9.wav")
    with pytest.raises(InputError, match="speaker s0 is in train as well, but those of test must be new"):
        run_all.speaker_study(args, torch.device("cpu"))
