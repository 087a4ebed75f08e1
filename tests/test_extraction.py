"""Facts about features of a whole corpus: the same from any source, in any format, batch and length."""

import io
import json
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_prepared
from preparing_runs import prepare_audio
from tqdm import tqdm

import load_pretrained_model
from apc_model import APCModel
from export import export_features
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.audio import waveforms as audio
from utils.corpus.prepared import load_lengths, load_tensor, save_tensor
from utils.corpus.sources import ArchiveSource
from utils.features.extraction import Extraction
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "librispeech_data" / "sample" / "audio" / "train"
HIDDEN, LAYERS = 12, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of 80-dim frames."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / f"bs32-rhl{LAYERS}-rhs{HIDDEN}-rd0-adam-res-ts3.pt"
    torch.save(APCModel(80, None, RNNConfig(80, HIDDEN, LAYERS, 0.0, True)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def from_audio(tmp_path_factory):
    """The sample's training audio, prepared."""
    return prepare_audio(AUDIO, tmp_path_factory.mktemp("audio") / "prepared", "--max_seq_len", 800)


def one_by_one(checkpoint, prepared):
    """Every layer's features, one prepared utterance at a time: (layers, frames, hidden) each."""
    model = load_pretrained(checkpoint)
    with torch.no_grad():
        return {
            utterance: model(load_tensor(prepared / f"{utterance}.pt")[None, :length], [length])[1][:, 0].numpy()
            for utterance, length in load_lengths(prepared).items()
        }


@pytest.fixture(scope="module")
def expected(checkpoint, from_audio):
    """Every layer's features of the prepared audio."""
    return one_by_one(checkpoint, from_audio)


def extract(checkpoint, data, save_dir, *options):
    """Run the script on one thing or several."""
    data = data if isinstance(data, list) else [data]
    load_pretrained_model.main(
        ["--checkpoint", str(checkpoint), "--data", *map(str, data), "--save_dir", str(save_dir),
         "--load_data_workers", "0", *map(str, options)]
    )  # fmt: skip
    return save_dir


def read(directory):
    """What an extraction wrote, in the order of the source: arrays by utterance."""
    if (directory / "feats.scp").exists():
        return {name: np.array(matrix) for name, matrix in kaldiio.load_scp_sequential(str(directory / "feats.scp"))}
    found = {}
    for utterance in load_lengths(directory):
        path = directory / f"{utterance}.pt"
        is_pt = path.exists()
        found[utterance] = torch.load(path, weights_only=True).numpy() if is_pt else np.load(path.with_suffix(".npy"))
    assert {file.stem for file in directory.iterdir() if file.suffix in (".pt", ".npy")} == set(found)
    return found


def assert_features(found, expected, atol=1e-5):
    """The same utterances in the same order, and the same numbers."""
    assert list(found) == list(expected)
    for utterance, feats in found.items():
        assert feats.shape == expected[utterance].shape, utterance
        np.testing.assert_allclose(feats, expected[utterance], atol=atol, err_msg=utterance)


def test_features_are_the_same_from_tensors_archives_and_audio(checkpoint, from_audio, expected, tmp_path):
    last = {utterance: feats[-1] for utterance, feats in expected.items()}
    for name in ("f.ark", "f.blogmel.xz"):
        export_features.main(["--data", str(from_audio), "--save", str(tmp_path / name)])
    sources = {
        "prepared": (from_audio,), "ark": (tmp_path / "f.ark",), "scp": (tmp_path / "f.scp",),
        "blogmel": (tmp_path / "f.blogmel.xz",), "audio": (AUDIO,), "workers": (AUDIO, "--load_data_workers", 2),
        "known speakers": (AUDIO, "--norm_from", from_audio),
    }  # fmt: skip
    for name, (data, *options) in sources.items():
        assert_features(read(extract(checkpoint, data, tmp_path / name, *options)), last)
    assert (tmp_path / "audio" / "normalization.json").exists()


def test_several_archives_are_one_corpus_and_an_id_in_two_of_them_is_refused(
    checkpoint, from_audio, expected, tmp_path
):
    frames = {name: load_tensor(from_audio / f"{name}.pt")[:n].numpy() for name, n in load_lengths(from_audio).items()}
    first, *rest = frames
    write_ark(tmp_path / "a.ark", [(first, frames[first])])
    write_ark(tmp_path / "b.ark", [(name, frames[name]) for name in rest])
    found = read(extract(checkpoint, [tmp_path / "a.ark", tmp_path / "b.ark"], tmp_path / "out"))
    assert_features(found, {name: feats[-1] for name, feats in expected.items()})
    twice = [tmp_path / "a.ark", tmp_path / "b.ark", tmp_path / "a.scp"]
    with pytest.raises(InputError, match=rf"a\.scp:1.*{first}.*duplicate utterance id: first at .*a\.ark"):
        extract(checkpoint, twice, tmp_path / "twice")
    extract(checkpoint, twice, tmp_path / "skip", "--on_error", "skip")
    assert (tmp_path / "skip" / "skipped.txt").read_text().count("\n") == 1
    assert_features(read(tmp_path / "skip"), found)


LAYER_OF = {"0": lambda feats: feats[0], "-1": lambda feats: feats[-1], "all": lambda feats: feats,
            "mean": lambda feats: feats.mean(0)}  # fmt: skip


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", ["pt", "npy", "ark"])
def test_every_format_holds_the_same_numbers(form, half, checkpoint, from_audio, expected, tmp_path):
    for layer, pick in LAYER_OF.items():
        options = ["--format", form, "--layer", layer, *(["--half"] if half else [])]
        found = read(extract(checkpoint, from_audio, tmp_path / layer, *options))
        wanted = {name: pick(feats) for name, feats in expected.items()}
        if form == "ark" and layer == "all":  # layers stand side by side
            wanted = {name: np.concatenate(list(feats), axis=1) for name, feats in wanted.items()}
        assert {x.dtype for x in found.values()} == {np.dtype(np.float16 if half and form != "ark" else np.float32)}
        assert_features(found, wanted, atol=2e-3 if half else 1e-5)


def test_an_archive_of_16_bits_is_half_as_large_and_read_by_others_and_here(checkpoint, from_audio, tmp_path):
    sizes = {}
    for options in ((), ("--half",)):
        out = extract(checkpoint, from_audio, tmp_path / f"o{len(options)}", "--format", "ark", *options)
        sizes[len(options)] = (out / "feats.ark").stat().st_size
        ours = {found.id: found.load() for found in ArchiveSource([out / "feats.scp"]).utterances()}
        assert_features(ours, read(out), atol=0)
    assert sizes[1] < 0.52 * sizes[0]


@pytest.mark.parametrize("options", [
    ("--batch_size", 1), ("--batch_size", 3), ("--chunk", 1), ("--chunk", 100, "--batch_size", 2), ("--chunk", 5000),
])  # fmt: skip
def test_features_do_not_depend_on_the_batch_or_the_pieces_they_were_computed_in(options, checkpoint, tmp_path):
    lengths = [40, 3, 17, 25, 8, 1, 33, 12, 20, 5, 40, 40]
    prepared = make_prepared(tmp_path / "prepared", lengths, mel_dim=80)
    last = {utterance: feats[-1] for utterance, feats in one_by_one(checkpoint, prepared).items()}
    assert_features(read(extract(checkpoint, prepared, tmp_path / "out", *options)), last)


def test_a_job_goes_on_with_batches_of_another_size(checkpoint, from_audio, tmp_path, capsys):
    out = extract(checkpoint, from_audio, tmp_path / "out")
    recorded = json.loads((out / "made_from.json").read_text())
    (out / "made_from.json").write_text(json.dumps(recorded | {"batch_size": 32, "chunk": 1000}))  # as it was
    extract(checkpoint, from_audio, out, "--batch_size", 1, "--chunk", 9)
    assert "was complete before" in capsys.readouterr().out


def test_the_bar_counts_what_is_computed_to_the_end(checkpoint, from_audio, tmp_path, monkeypatch):
    class Bar(tqdm):
        def __init__(self, *args, disable=None, **options):
            super().__init__(*args, disable=False, file=io.StringIO(), **options)

    seen = []

    def run_batch(self, batch):
        seen.append((self._pass.bar.n, self._pass.bar.total))
        whole(self, batch)
        seen.append((self._pass.bar.n, self._pass.bar.total))

    whole = Extraction._run_batch
    monkeypatch.setattr("utils.corpus.passes.tqdm", Bar)
    monkeypatch.setattr(Extraction, "_run_batch", run_batch)
    extract(checkpoint, from_audio, tmp_path / "out", "--batch_size", 3)
    assert seen == [(0, 4), (3, 4), (3, 4), (4, 4)]


def test_many_long_recordings_are_computed_few_at_a_time(checkpoint, tmp_path, monkeypatch):
    for number in range(5):
        path = tmp_path / "audio" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 32000), 16000)
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    monkeypatch.setattr("utils.features.extraction.LONG_AT_ONCE", 2)
    sizes = []

    def run_batch(self, batch):
        sizes.append(len(batch))
        whole(self, batch)

    whole = Extraction._run_batch
    monkeypatch.setattr(Extraction, "_run_batch", run_batch)
    options = "--norm", "none", "--any_frames", "--batch_size", 32
    assert len(read(extract(checkpoint, tmp_path / "audio", tmp_path / "out", *options))) == 5
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("norm, front_end", [
    ("speaker", "kaldi-hires"), ("utterance-unbiased", "s3prl"), ("none", "released"), ("utterance-mean", "released"),
])  # fmt: skip
def test_a_long_recording_read_piece_by_piece_has_the_features_of_one_read_whole(
    norm, front_end, checkpoint, tmp_path, monkeypatch
):
    (tmp_path / "audio").mkdir()
    samples, _ = soundfile.read(next(AUDIO.glob("*.flac")), dtype="int16")
    soundfile.write(tmp_path / "audio" / "long.wav", samples[: 16000 * 4], 16000)
    soundfile.write(tmp_path / "audio" / "other.wav", samples[: 16000 * 3], 22050)  # resampled
    options = ["--norm", norm, "--resample", "--front_end", front_end, "--any_frames"]
    whole = read(extract(checkpoint, tmp_path / "audio", tmp_path / "whole", *options))
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    monkeypatch.setattr(audio, "BLOCK_VALUES", 7001)
    pieces = read(extract(checkpoint, tmp_path / "audio", tmp_path / "pieces", *options, "--chunk", 33))
    assert_features(pieces, whole, atol=1e-4)


def test_a_long_recording_that_is_cut_off_is_left_out_and_its_batch_is_whole(checkpoint, tmp_path, monkeypatch):
    corpus = tmp_path / "audio"
    corpus.mkdir()
    for path in AUDIO.glob("*.flac"):
        (corpus / path.name).write_bytes(path.read_bytes())
    bad = sorted(corpus.iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:-20000])
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    options = ["--norm", "none", "--any_frames", "--chunk", 50]
    with pytest.raises(InputError, match=rf"{bad.name}: utterance {bad.stem}: .*truncated.*--on_error skip"):
        extract(checkpoint, corpus, tmp_path / "stop", *options)
    found = read(extract(checkpoint, corpus, tmp_path / "skip", *options, "--on_error", "skip"))
    assert bad.stem in (tmp_path / "skip" / "skipped.txt").read_text() and bad.stem not in found
    assert len(found) == 3
    bad.unlink()
    assert_features(found, read(extract(checkpoint, corpus, tmp_path / "without", *options)))


def test_a_bad_utterance_stops_or_is_listed(checkpoint, tmp_path):
    good, bad = np.ones((3, 80), np.float32), np.full((3, 80), np.nan, np.float32)
    write_ark(tmp_path / "f.ark", [("a-1-1", good), ("b-1-1", bad), ("c-1-1", good[:, :40]), ("d-1-1", good)])
    with pytest.raises(InputError, match=r"b-1-1.*NaN.*--on_error skip"):
        extract(checkpoint, tmp_path / "f.ark", tmp_path / "out")
    assert not (tmp_path / "out" / "lengths.pkl").exists()
    extract(checkpoint, tmp_path / "f.ark", tmp_path / "out", "--on_error", "skip")
    assert list(read(tmp_path / "out")) == ["a-1-1", "d-1-1"]
    told = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert "NaN" in told[0] and "c-1-1: frames of size 40, but the model reads 80" in told[1]


def test_a_prepared_utterance_that_is_not_finite_stops_or_is_listed(checkpoint, tmp_path):
    data = make_prepared(tmp_path / "data", [9, 7, 8], mel_dim=80)
    save_tensor(data / "spk1-0001.pt", load_tensor(data / "spk1-0001.pt").index_fill(0, torch.tensor(3), np.nan))
    with pytest.raises(InputError, match=r"spk1-0001\.pt: utterance spk1-0001: frame 4 of 7 .*NaN.*--on_error skip"):
        extract(checkpoint, data, tmp_path / "out")
    assert list(read(extract(checkpoint, data, tmp_path / "out", "--on_error", "skip"))) == ["spk0-0000", "spk2-0002"]
    assert "frame 4 of 7" in (tmp_path / "out/skipped.txt").read_text()


@pytest.mark.parametrize("form", ["pt", "npy", "ark"])
@pytest.mark.parametrize("factor, half", [(1e35, []), (1e4, ["--half"])])
def test_features_beyond_what_a_format_holds_stop_or_are_left_out(form, factor, half, tmp_path):
    """A residual layer of the size of the frames adds these, however large, to its features."""
    torch.manual_seed(0)
    torch.save(
        APCModel(9, None, RNNConfig(9, 9, 3, 0.0, True)).state_dict(), tmp_path / "bs1-rhl3-rhs9-rd0-adam-res-ts1.pt"
    )
    data = make_prepared(tmp_path / "data", [9, 8, 7], mel_dim=9)
    frames = load_tensor(data / "spk1-0001.pt")
    frames[5] = 3e3 * factor  # 3e38: three layers or a mean of numbers add up to infinity
    save_tensor(data / "spk1-0001.pt", frames)
    arguments = [tmp_path / "bs1-rhl3-rhs9-rd0-adam-res-ts1.pt", data, tmp_path / "out"]
    options = ["--format", form, "--layer", "mean", "--chunk", 4, *half]
    if half and form == "ark":  # whose steps fit the numbers
        assert len(read(extract(*arguments, *options))) == 3
        return
    with pytest.raises(InputError, match=r"spk1-0001\.pt: utterance spk1-0001: .*frame 6 .*--on_error skip"):
        extract(*arguments, *options)
    found = read(extract(*arguments, *options, "--on_error", "skip"))
    assert list(found) == ["spk0-0000", "spk2-0002"] and all(np.isfinite(x).all() for x in found.values())
    assert "frame 6 " in (tmp_path / "out/skipped.txt").read_text()


def test_another_job_is_refused_and_overwrites_when_told(checkpoint, from_audio, tmp_path):
    out = extract(checkpoint, from_audio, tmp_path / "out")
    before = read(out)
    for change, message in (
        (["--format", "npy"], "format pt, not npy"), (["--layer", "0"], "layer -1, not 0"),
        (["--half"], "half False, not True"), (["--no-residual"], "residual True, not False"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"was made with {message}; give another directory, or --overwrite"):
            extract(checkpoint, from_audio, out, *change)
    raw = extract(checkpoint, AUDIO, tmp_path / "raw", "--norm", "none", "--any_frames")
    with pytest.raises(InputError, match="was made with data_norm none, not speaker; give another directory, or"):
        extract(checkpoint, AUDIO, raw, "--norm", "speaker", "--any_frames")
    assert_features(read(out), before, atol=0)
    extract(checkpoint, from_audio, out, "--format", "npy", "--overwrite")
    assert not list(out.glob("*.pt"))
    assert_features(read(out), before)
    extract(checkpoint, from_audio, out, "--format", "ark", "--overwrite")
    assert_features(read(out), before)
    assert {path.name for path in out.glob("[!.]*")} == {"feats.ark", "feats.scp", "lengths.pkl", "made_from.json"}
    extract(checkpoint, from_audio, out, "--overwrite")
    assert not list(out.glob("feats*"))


def test_a_complete_directory_is_left_as_it_is(checkpoint, from_audio, tmp_path, capsys):
    for form in ("pt", "ark"):
        out = extract(checkpoint, from_audio, tmp_path / form, "--format", form)
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
        extract(checkpoint, from_audio, out, "--format", form)
        assert "was complete before" in capsys.readouterr().out
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()} == before


@pytest.mark.parametrize("name", ["feats.ark", "feats.scp"])
def test_a_complete_directory_without_its_archive_is_refused(name, checkpoint, from_audio, tmp_path):
    out = extract(checkpoint, from_audio, tmp_path / "out", "--format", "ark")
    (out / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing; --overwrite"):
        extract(checkpoint, from_audio, out, "--format", "ark")


@pytest.mark.parametrize("options, message", [
    (("--layer", "7"), "--layer 7: give all, mean, or a number from -3 to 2"),
    (("--norm", "none", "--norm_from", "x"), "exclude each other"),
    (("--resample",), "are for audio"), (("--front_end", "s3prl"), "are for audio"),
    (("--norm", "utterance"), "are normalised already"),
    (("--norm_from", str(AUDIO)), "are normalised already"),
])  # fmt: skip
def test_options_that_make_no_sense_touch_nothing(options, message, checkpoint, from_audio, tmp_path):
    with pytest.raises(InputError, match=message):
        extract(checkpoint, from_audio, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_what_is_no_data_of_the_model_touches_nothing(checkpoint, from_audio, prepared, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.ark").write_bytes(b"")
    write_ark(tmp_path / "narrow.ark", [("a", np.ones((3, 40), np.float32))])
    for data, message in (
        (prepared, "has frames of 6 but the model reads 80"), (tmp_path / "narrow.ark", "has frames of 40 but"),
        (tmp_path / "none", "none does not exist"), (tmp_path / "empty", "holds no audio"),
        ([from_audio, AUDIO], "give one directory"),
        (tmp_path / "empty.ark", "no utterance"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            extract(checkpoint, data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"an \.scp cannot name"):
        extract(checkpoint, from_audio, tmp_path / "out [1]", "--format", "ark")


@pytest.mark.parametrize("norm", ["global", "none"])
def test_an_utterance_of_another_frame_size_is_named_or_left_out(checkpoint, norm, tmp_path):
    frames = np.random.default_rng(0).standard_normal((9, 80)).astype(np.float32)
    write_ark(tmp_path / "f.ark", [("a-1-1", frames), ("a-1-2", frames[:, :40]), ("a-1-3", frames)])
    options = ("--norm", norm, "--any_frames")
    with pytest.raises(InputError, match=r"utterance a-1-2: frames of size 40, but .* 80"):
        extract(checkpoint, tmp_path / "f.ark", tmp_path / "stopped", *options)
    out = extract(checkpoint, tmp_path / "f.ark", tmp_path / "out", *options, "--on_error", "skip")
    assert list(read(out)) == ["a-1-1", "a-1-3"]
    assert "a-1-2" in (out / "skipped.txt").read_text()


def test_an_id_with_a_space_is_refused_for_every_format(checkpoint, tmp_path):
    (tmp_path / "audio").mkdir()
    noise = np.random.default_rng(0).standard_normal(16000) / 10
    for name in ("my file", "other"):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", noise, 16000)
    for form in ("pt", "ark"):
        with pytest.raises(InputError, match="the utterance id 'my file' holds a space"):
            extract(checkpoint, tmp_path / "audio", tmp_path / "out", "--format", form, "--on_error", "skip")
    assert not (tmp_path / "out").exists()


MEASURE = """
import re, sys
from pathlib import Path
import load_pretrained_model
load_pretrained_model.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_ten_minutes_take_the_memory_of_one(tmp_path):
    """Samples, frames and features of ten minutes together are 80 MB."""
    torch.manual_seed(0)
    path = tmp_path / "bs32-rhl1-rhs64-rd0-adam-res-ts3.pt"
    torch.save(APCModel(80, None, RNNConfig(80, 64, 1, 0.0, True)).state_dict(), path)
    noise = np.random.default_rng(0).normal(0, 1000, 16000 * 60).astype(np.int16)
    peaks = []
    for minutes in (1, 10):
        corpus = tmp_path / f"corpus{minutes}"
        corpus.mkdir()
        soundfile.write(corpus / "a.wav", np.tile(noise, minutes), 16000)
        arguments = ["--checkpoint", path, "--data", corpus, "--save_dir", tmp_path / f"out{minutes}"]
        command = [
            sys.executable,
            "-c",
            MEASURE,
            *arguments,
            "--load_data_workers",
            0,
            "--norm",
            "global",
            "--any_frames",
        ]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]) / 1024)
    assert load_lengths(tmp_path / "out10") == {"a": 60 * 1000 - 2}
    assert peaks[1] < peaks[0] + 40, peaks
