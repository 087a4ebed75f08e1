"""Facts about front ends: each is Kaldi's filterbank, dither can be repeated, and old directories have their own."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from preparing_runs import ROOT, content, prepare_audio, run_to_death

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, find_front_end
from utils.audio.log_mel import OnlineLogMel, log_mel
from utils.corpus.audio_source import AudioOptions
from utils.corpus.audio_tree import find_audio
from utils.corpus.normalization import MODES, Normalizer
from utils.corpus.prepared import load_lengths, load_tensor
from utils.system.errors import InputError

SPEECH = sorted((ROOT / "librispeech_data" / "sample" / "audio").rglob("*.flac"))
RELEASED = FRONT_ENDS["released"]
NOISE = (-3.08092, -2.46180, -2.59930, -1.95675)  # log Mel of dithered silence
NUMBERS = {  # window, band in Hz, and the value of a sample of 1, written out here: the table must not drift
    "released": (lambda t: 0.54 - 0.46 * np.cos(t), 20.0, 8000.0, 32768),
    "kaldi-hires": (lambda t: (0.5 - 0.5 * np.cos(t)) ** 0.85, 20.0, 7600.0, 32768),
    "s3prl": (lambda t: 0.54 - 0.46 * np.cos(t), 20.0, 8000.0, 1),
}


def mel(hertz):
    return 1127.0 * np.log(1.0 + np.asarray(hertz, float) / 700.0)


def plain_log_mel(samples, window, low, high, full_scale):
    """Kaldi's filterbank in plain numpy and float64, at dither 0; samples (samples,) in the range of int16."""
    starts = np.arange(0, len(samples) - 400 + 1, 160)
    windows = samples[starts[:, None] + np.arange(400)] * (full_scale / 32768)  # (frames, 400)
    windows -= windows.mean(axis=1, keepdims=True)
    windows = windows - 0.97 * np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(windows * window(2 * np.pi * np.arange(400) / 399), 512)) ** 2  # (frames, 257)
    edges, bins = np.linspace(mel(low), mel(high), 82), mel(np.arange(257) * 16000.0 / 512.0)
    left, centre, right = (edges[i : i + 80, None] for i in range(3))
    triangles = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    triangles[:, 256] = 0.0  # Kaldi leaves the Nyquist frequency out
    return np.log(np.maximum(power @ triangles.T, np.finfo(np.float32).eps))


def frames_of(directory):
    """The true frames of each utterance."""
    return {u: load_tensor(directory / f"{u}.pt")[:n].numpy() for u, n in load_lengths(directory).items()}


@pytest.fixture
def corpus(tmp_path):
    """Two speakers with two real utterances each, cut short."""
    for i, path in enumerate(SPEECH[:4]):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(tmp_path / "corpus" / f"{i // 2}-0-{i}.flac", samples[8000 : 24000 + 500 * i], rate)
    return tmp_path / "corpus"


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_each_front_end_is_kaldis_filterbank_of_its_numbers(name):
    for path in SPEECH:
        samples, _ = soundfile.read(path, dtype="int16")
        frames, expected = log_mel(samples, front_end=find_front_end(name, 0)), plain_log_mel(samples, *NUMBERS[name])
        assert frames.dtype == np.float32 and frames.shape == expected.shape
        assert np.abs(frames - expected).max() < 0.01 and np.abs(frames - expected).mean() < 1e-4


def test_the_table_has_the_published_dither_and_normalisation():
    assert {x.name: (x.dither, x.norm, x.num_mel_bins) for x in FRONT_ENDS.values()} == {
        "released": (1, "speaker-mean", 80), "kaldi-hires": (0, "speaker", 80), "s3prl": (0, "utterance-unbiased", 80)
    }  # fmt: skip
    assert all(front_end.norm in MODES and front_end.source for front_end in FRONT_ENDS.values())


def test_the_unbiased_norm_is_pytorchs_standard_deviation():
    frames = torch.randn(37, 80) * 3 + 5
    expected = (frames - frames.mean(0)) / frames.std(0)
    torch.testing.assert_close(torch.from_numpy(Normalizer("utterance-unbiased").apply(frames.numpy())), expected)


def test_dither_is_noise_of_its_standard_deviation():
    for dither in (1, 10):
        silence = log_mel(np.zeros(160000, np.int16), front_end=dataclasses.replace(RELEASED, dither=dither), seed="u")
        noise = np.random.default_rng(0).normal(0, dither, 160000)
        expected = plain_log_mel(noise, *NUMBERS["released"])
        assert np.abs(silence.mean(0) - expected.mean(0)).max() < 0.3 and np.isfinite(silence).all()
        assert abs(silence.mean() - expected.mean()) < 0.02


def test_dither_leaves_loud_speech_alone_and_is_the_same_for_the_same_utterance_only():
    samples, _ = soundfile.read(SPEECH[0], dtype="int16")
    dithered, plain = (
        log_mel(samples, front_end=RELEASED, seed="a"),
        log_mel(samples, front_end=find_front_end("released", 0)),
    )
    loud = plain.mean(1) > np.median(plain.mean(1))
    assert 0 < np.abs(dithered - plain)[loud].mean() < 0.05
    assert np.array_equal(dithered, log_mel(samples, front_end=RELEASED, seed="a"))
    assert not np.array_equal(dithered, log_mel(samples, front_end=RELEASED, seed="b"))
    assert np.array_equal(plain, log_mel(samples, front_end=dataclasses.replace(RELEASED, dither=0), seed="a"))


def test_the_noise_of_a_seed_never_changes():
    """Prepared data can be continued after an upgrade of NumPy only while this holds."""
    frames = log_mel(np.zeros(400, np.int16), front_end=RELEASED, seed="84-121123-0000")
    assert np.allclose(frames[0, :4], NOISE, atol=1e-4)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_frames_are_bit_for_bit_those_of_the_whole_however_the_waveform_is_cut(name):
    samples, _ = soundfile.read(SPEECH[0], dtype="int16")
    samples, front_end = samples[:20000], FRONT_ENDS[name]
    expected = log_mel(samples, front_end=front_end, seed="u")
    for sizes in ([160] * 200, [1, 399, 1, 159, 0, 1, 10001], np.random.default_rng(0).integers(0, 900, 99)):
        online = OnlineLogMel(front_end, "u")
        frames = [online.accept(piece) for piece in np.split(samples, np.cumsum(sizes))]
        assert np.array_equal(np.concatenate(frames), expected)


def test_an_utterance_is_dithered_alike_whole_and_in_blocks_and_in_any_order(corpus):
    files = find_audio([corpus], AudioOptions(front_end=RELEASED)).files
    whole = [file.load() for file in files]
    assert all(np.array_equal(np.concatenate(list(file.blocks())), x) for file, x in zip(files, whole, strict=True))
    assert all(np.array_equal(file.load(), x) for file, x in reversed(list(zip(files, whole, strict=True))))


def test_dithered_frames_are_the_same_bytes_for_any_workers_and_when_killed(corpus, tmp_path):
    options = "--front_end", "released"
    for workers in (0, 1, 3):
        prepare_audio(corpus, tmp_path / str(workers), *options, workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "3")
    arguments = ["--librispeech_audio", str(corpus), "--save_dir", str(tmp_path / "out"), "--num_workers", "0"]
    assert run_to_death([*arguments, *options], 3, "record", "SIGKILL").returncode == -9
    prepare_audio(corpus, tmp_path / "out", *options)
    assert content(tmp_path / "out") == content(tmp_path / "0")


@pytest.mark.parametrize("norm, group", [
    ("speaker-mean", lambda u: u[0]), ("utterance-mean", lambda u: u), ("global-mean", lambda u: ""),
])  # fmt: skip
def test_a_mean_mode_removes_the_mean_of_its_group_and_leaves_the_variance(corpus, tmp_path, norm, group):
    prepare_audio(corpus, tmp_path / "raw", "--norm", "none")
    prepare_audio(corpus, tmp_path / "out", "--norm", norm)
    raw, found = frames_of(tmp_path / "raw"), frames_of(tmp_path / "out")
    for utterance, frames in found.items():
        of_group = np.concatenate([x for u, x in raw.items() if group(u) == group(utterance)]).astype(np.float64)
        assert np.allclose(frames, raw[utterance] - of_group.mean(axis=0), atol=1e-5)
    prepare_audio(corpus, tmp_path / "again", "--norm_from", tmp_path / "out")
    assert all(np.array_equal(x, found[u]) for u, x in frames_of(tmp_path / "again").items())
    assert "the mean only" in Normalizer.load(tmp_path / "out").describe()


def test_the_front_end_decides_the_normalisation_and_is_recorded(corpus, tmp_path):
    for name in FRONT_ENDS:
        prepare_audio(corpus, tmp_path / name, "--front_end", name)
        made_from = json.loads((tmp_path / name / "made_from.json").read_text())
        front_end = FRONT_ENDS[name]
        assert (made_from["front_end"], made_from["dither"], made_from["norm"]) == (
            name, front_end.dither, front_end.norm)  # fmt: skip
    with pytest.raises(InputError, match="front_end released, not s3prl"):
        prepare_audio(corpus, tmp_path / "released", "--front_end", "s3prl")
    with pytest.raises(InputError, match=r"dither 1, not 0\.0"):
        prepare_audio(corpus, tmp_path / "released", "--front_end", "released", "--dither", 0)


def test_a_directory_made_before_front_ends_had_names_is_kaldi_hires(corpus, tmp_path):
    out = prepare_audio(corpus, tmp_path / "out", "--front_end", "kaldi-hires")
    made_from = json.loads((out / "made_from.json").read_text())
    del made_from["front_end"], made_from["dither"]
    (out / "made_from.json").write_text(json.dumps(made_from))
    (out / "lengths.pkl").unlink()
    prepare_audio(corpus, out, "--front_end", "kaldi-hires")
    assert len(load_lengths(out)) == 4
    with pytest.raises(InputError, match="front_end kaldi-hires, not released"):
        prepare_audio(corpus, out, "--front_end", "released")


def test_an_unknown_name_lists_the_names(corpus, tmp_path, capsys):
    with pytest.raises(InputError, match="'htk': there are released, kaldi-hires, s3prl"):
        find_front_end("htk")
    with pytest.raises(SystemExit):
        prepare_audio(corpus, tmp_path / "out", "--front_end", "htk")
    said = capsys.readouterr().err
    assert all(name in said for name in FRONT_ENDS) and not (tmp_path / "out").exists()
    assert find_front_end().name == DEFAULT_FRONT_END


@pytest.mark.parametrize("dither", ["-1", "nan", "inf", "x"])
def test_dither_is_a_number_of_0_or_more(corpus, tmp_path, dither):
    with pytest.raises(SystemExit):
        prepare_audio(corpus, tmp_path / "out", "--dither", dither)


@pytest.mark.parametrize("norm", MODES)
def test_digital_silence_and_a_speaker_of_one_frame_give_finite_frames_and_are_named(corpus, tmp_path, capsys, norm):
    soundfile.write(corpus / "8-0-0.flac", np.zeros(16000, np.int16), 16000)
    soundfile.write(corpus / "9-0-0.flac", np.random.default_rng(0).normal(0, 0.1, 400), 16000)
    out = prepare_audio(corpus, tmp_path / "out", "--front_end", "released", "--dither", 0, "--norm", norm)
    assert all(np.isfinite(frames).all() for frames in frames_of(out).values())
    said = capsys.readouterr().out
    count = 2 if norm in ("utterance", "utterance-unbiased") else 1  # with the single frame
    assert f"{count} files shorter than their headers, of unknown length, silent or of zero variance" in said
    assert "8-0-0.flac: digital silence: every sample is 0\n" in (out / "shorter.txt").read_text()
    if norm == "speaker":
        assert "2 with bins of zero variance, which become 0: 8, ..." in said
    if norm == "speaker-mean":
        assert "2 with less than a second of sound, so of little use: 8, ..." in said
