"""Facts about audio input: which files, which samples, whose mean and variance."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from preparing_runs import ROOT, content, prepare, prepare_audio, run_to_death

from utils.audio.log_mel import log_mel
from utils.audio.waveforms import read_waveform
from utils.corpus.normalization import Normalizer
from utils.corpus.prepared import load_lengths, load_tensor
from utils.system.errors import InputError

SAMPLE = ROOT / "librispeech_data" / "sample"
REAL = sorted((SAMPLE / "audio").rglob("*.flac"))


def frames_of(directory):
    """The true frames of each utterance."""
    return {u: load_tensor(directory / f"{u}.pt")[:n].numpy() for u, n in load_lengths(directory).items()}


def noise(seconds=0.5, rate=16000, channels=1, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels)).squeeze()


@pytest.fixture
def corpus(tmp_path):
    """Two speakers in LibriSpeech's layout: real utterances, cut short."""
    for i, path in enumerate(REAL):
        speaker, chapter = str(1 + i % 2), str(7 + i)
        folder = tmp_path / "corpus" / speaker / chapter
        folder.mkdir(parents=True)
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(folder / f"{speaker}-{chapter}-000{i}.flac", samples[: 16000 + 500 * i], rate)
    return tmp_path / "corpus"


def raw_frames(corpus):
    """The unnormalised frames of each utterance, and its speaker."""
    files = {path.stem: path for path in sorted(corpus.rglob("*.flac"))}
    return {
        u: (log_mel(soundfile.read(path)[0], seed=u).astype(np.float64), u.split("-")[0]) for u, path in files.items()
    }


def normalised(raw, group):
    """Each utterance's frames with zero mean and unit variance over its group, in plain numpy."""
    groups = {}
    for utterance, (frames, speaker) in raw.items():
        groups.setdefault(group(utterance, speaker), []).append(frames)
    joined = {name: np.concatenate(frames) for name, frames in groups.items()}
    return {
        u: (frames - joined[group(u, s)].mean(axis=0)) / joined[group(u, s)].std(axis=0)
        for u, (frames, s) in raw.items()
    }


@pytest.mark.parametrize("norm, group", [
    ("speaker", lambda u, s: s), ("utterance", lambda u, s: u), ("global", lambda u, s: ""), ("none", None),
])  # fmt: skip
def test_each_mode_normalises_over_what_it_says(corpus, tmp_path, norm, group):
    prepare_audio(corpus, tmp_path / "out", "--norm", norm)
    raw = raw_frames(corpus)
    expected = normalised(raw, group) if group else {u: frames for u, (frames, _) in raw.items()}
    found = frames_of(tmp_path / "out")
    assert list(found) == sorted(expected)
    for utterance in expected:
        assert np.allclose(found[utterance], expected[utterance], atol=1e-4)


@pytest.mark.parametrize("options, std", [((), None), (("--front_end", "kaldi-hires"), 1)])
def test_normalisation_per_speaker_is_the_default_and_covers_what_truncation_drops(corpus, tmp_path, options, std):
    prepare_audio(corpus, tmp_path / "whole", *options)
    prepare_audio(corpus, tmp_path / "cut", "--max_seq_len", 20, *options)
    whole, cut = frames_of(tmp_path / "whole"), frames_of(tmp_path / "cut")
    assert all(np.array_equal(cut[u], whole[u][:20]) for u in whole)
    assert (tmp_path / "whole" / "normalization.json").read_text() == (
        tmp_path / "cut" / "normalization.json"
    ).read_text()
    everything = {s: np.concatenate([whole[u] for u in whole if u.startswith(s)]) for s in "12"}
    assert all(np.allclose(frames.mean(axis=0), 0, atol=1e-4) for frames in everything.values())
    if std:
        assert all(np.allclose(frames.std(axis=0), std, atol=1e-4) for frames in everything.values())


def test_new_audio_is_normalised_the_same_way(corpus, tmp_path):
    prepare_audio(corpus, tmp_path / "out")
    utterance, expected = next(iter(frames_of(tmp_path / "out").items()))
    normalizer = Normalizer.load(tmp_path / "out" / "normalization.json")
    path = next(corpus.rglob(f"{utterance}.flac"))
    speaker = utterance.split("-")[0]
    assert np.array_equal(normalizer.apply(log_mel(read_waveform(path), seed=utterance), speaker), expected)
    with pytest.raises(InputError, match=r"for each of . speakers, not for 9$"):
        normalizer.apply(log_mel(read_waveform(path)), "9")
    prepare_audio(corpus / speaker, tmp_path / "again", "--norm_from", tmp_path / "out")
    assert np.array_equal(frames_of(tmp_path / "again")[utterance], expected)


@pytest.mark.parametrize("damage", ["{", "[]", '{"mode": "x"}',
    '{"mode": "global", "speakers_from": "", "statistics": 3}',
    '{"mode": "global", "speakers_from": "", "statistics": {"a": {"mean": [1, NaN], "std": [1, 1]}}}',
    '{"mode": "global", "speakers_from": "", "statistics": {"a": {"mean": [1], "std": [0]}}}'])  # fmt: skip
def test_a_damaged_normalisation_is_refused(tmp_path, damage):
    (tmp_path / "normalization.json").write_text(damage)
    with pytest.raises(InputError, match=r"normalization.json is damaged"):
        Normalizer.load(tmp_path)


@pytest.mark.parametrize("norm", ["speaker", "global"])
def test_the_number_of_workers_changes_no_byte(corpus, tmp_path, norm):
    for workers in (0, 1, 3):
        prepare_audio(corpus, tmp_path / str(workers), "--norm", norm, workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "3")
    assert not (tmp_path / "3" / ".raw").exists()


def test_the_speaker_is_told_by_id_or_folder_or_map_and_the_output_says_which(corpus, tmp_path, capsys):
    def speakers(*options, directory=corpus):
        prepare_audio(directory, tmp_path / "out", "--overwrite", *options)
        names = json.loads((tmp_path / "out" / "normalization.json").read_text())["statistics"]
        return sorted(names), capsys.readouterr().out

    names, said = speakers()
    assert names == ["1", "2"] and "by the utterance id's first field" in said
    utterances = sorted(raw_frames(corpus))
    (tmp_path / "utt2spk").write_text("".join(f"{u} {'xy'[i // 3]}\n" for i, u in enumerate(utterances)))
    names, said = speakers("--utt2spk", tmp_path / "utt2spk")
    assert names == ["x", "y"] and "by a map of speakers (utt2spk)" in said
    (tmp_path / "spk2utt").write_text(f"x {' '.join(utterances[:3])}\ny {' '.join(utterances[3:])}\n")
    assert speakers("--spk2utt", tmp_path / "spk2utt")[0] == ["x", "y"]
    for path in list(corpus.rglob("*.flac")):
        (corpus / f"mary{path.stem[0]}").mkdir(exist_ok=True)
        path.rename(corpus / f"mary{path.stem[0]}" / f"{path.stem[-1]}_mary.flac")
    names, said = speakers()
    assert names == ["mary1", "mary2"] and "by the parent directory" in said


def test_a_speaker_that_no_rule_tells_is_an_error(corpus, tmp_path):
    (tmp_path / "utt2spk").write_text("1-7-0000 x\n")
    with pytest.raises(InputError, match=r"utt2spk has no speaker for utterance 1-11-0004"):
        prepare_audio(corpus, tmp_path / "out", "--utt2spk", tmp_path / "utt2spk")
    (tmp_path / "utt2spk").write_text("1-7-0000 x\n1-7-0000 y\n")
    with pytest.raises(InputError, match=r"utt2spk:2: utterance 1-7-0000 has two speakers"):
        prepare_audio(corpus, tmp_path / "out", "--utt2spk", tmp_path / "utt2spk")
    (tmp_path / "a.blogmel").write_text("cat\n1 2\n3 4\n.\n")
    with pytest.raises(
        InputError, match=r"a\.blogmel:1: utterance cat: the id cat does not name a speaker; give --utt2"
    ):
        prepare(tmp_path / "a.blogmel", tmp_path / "cats", "--norm", "speaker")


def test_an_utterance_of_no_known_speaker_can_be_left_out(corpus, tmp_path):
    known = sorted(raw_frames(corpus))[:-1]
    (tmp_path / "utt2spk").write_text("".join(f"{utterance} x\n" for utterance in known))
    out = prepare_audio(corpus, tmp_path / "out", "--utt2spk", tmp_path / "utt2spk", "--on_error", "skip")
    assert list(load_lengths(out)) == known
    assert "has no speaker for utterance" in (out / "skipped.txt").read_text()


def test_who_speaks_need_not_be_known_for_statistics_of_all(corpus, tmp_path):
    norm = prepare_audio(corpus, tmp_path / "norm", "--norm", "global")
    path = next(corpus.rglob("*.flac"))
    path.rename(path.with_name("hello.flac"))
    assert "hello" in load_lengths(prepare_audio(corpus, tmp_path / "out", "--norm_from", norm))
    with pytest.raises(InputError, match=r"hello\.flac is not named as LibriSpeech's files are"):
        prepare_audio(corpus, tmp_path / "other")


def bad_file(kind, path):
    """Write an audio file that cannot be used."""
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "damaged":
        samples = bytearray(REAL[0].read_bytes())
        samples[5000:9000] = bytes(4000)
        path.write_bytes(samples)
    elif kind == "cut off":
        path.write_bytes(REAL[0].read_bytes()[:20000])
    elif kind == "no audio":
        path.write_text("not audio at all")
    else:
        samples = {"no samples": np.zeros(0), "short": noise(0.0249), "constant": np.full(8000, 0.25)}
        stereo, slow = noise(channels=2), noise(rate=8000)
        samples |= {"stereo": stereo, "8 kHz": slow}
        soundfile.write(path, samples[kind], 8000 if kind == "8 kHz" else 16000)


@pytest.mark.parametrize("kind, message", [
    ("empty file", "truncated or damaged"), ("damaged", "damaged"), ("cut off", "truncated or damaged"),
    ("no audio", "truncated or damaged"), ("no samples", "truncated or damaged"),
    ("short", "398 samples, less than a window"),
    ("constant", "zero variance"), ("stereo", "2 channels; --channel"), ("8 kHz", "8000 Hz, not 16000 Hz; --resample"),
])  # fmt: skip
@pytest.mark.parametrize("norm", ["speaker", "none"])
def test_a_bad_file_is_named_or_left_out(corpus, tmp_path, kind, message, norm):
    bad_file(kind, corpus / "1" / "1-1-0001.flac")
    with pytest.raises(InputError, match=rf"1-1-0001.flac: utterance 1-1-0001: .*{message}"):
        prepare_audio(corpus, tmp_path / "out", "--norm", norm)
    prepare_audio(corpus, tmp_path / "out", "--norm", norm, "--on_error", "skip")
    skipped = (tmp_path / "out" / "skipped.txt").read_text()
    assert skipped.startswith("1-1-0001\t") and skipped.count("\n") == 1
    assert len(load_lengths(tmp_path / "out")) == 5


def test_a_wav_that_goes_on_after_what_its_header_promises_is_found_out(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a-1-1.wav"
    soundfile.write(path, noise(5), 16000)
    whole = path.read_bytes()
    data = whole.index(b"data") + 4
    path.write_bytes(whole[:data] + (2 * 16000).to_bytes(4, "little") + whole[data + 4 :])
    with pytest.raises(InputError, match=r"a-1-1.wav.* promises 1\.00 s, but 4\.00 s more follow"):
        prepare_audio(tmp_path / "a", tmp_path / "out")
    path.write_bytes(whole + bytes(1000))  # some recorders leave a little
    prepare_audio(tmp_path / "a", tmp_path / "out")


def test_a_wav_that_was_cut_off_is_found_out(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "a-1-1.wav", noise(), 16000)
    whole = (tmp_path / "a" / "a-1-1.wav").read_bytes()
    (tmp_path / "a" / "a-1-1.wav").write_bytes(whole[:8000])
    with pytest.raises(InputError, match=r"a-1-1.wav.*truncated"):
        prepare_audio(tmp_path / "a", tmp_path / "out")


def test_a_bin_without_variance_becomes_zero_and_its_speaker_or_utterance_is_named(tmp_path, capsys):
    (tmp_path / "a.blogmel").write_text("x-1-1\n1 2\n1 3\n.\ny-1-1\n1 2\n2 3\n.\nz-1-1\n5 7\n.\n")
    expected = {"x-1-1": [[0, -1], [0, 1]], "y-1-1": [[-1, -1], [1, 1]], "z-1-1": [[0, 0]]}
    for norm in ("speaker", "utterance"):
        out = prepare(tmp_path / "a.blogmel", tmp_path / norm, "--norm", norm)
        assert {name: frames.tolist() for name, frames in frames_of(out).items()} == expected
    assert "2 with bins of zero variance, which become 0: x, ..." in capsys.readouterr().out
    remarks = (tmp_path / "utterance" / "shorter.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in remarks] == ["x-1-1", "z-1-1"]
    assert remarks[0].endswith("zero variance in 1 bins") and remarks[1].endswith("zero variance in 2 bins")


def test_a_channel_and_a_sample_rate_are_taken_only_when_told(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    stereo = noise(channels=2)
    soundfile.write(tmp_path / "a" / "a-1-1.wav", stereo, 16000, "FLOAT")
    for channel in (0, 1):
        prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none", "--overwrite", "--channel", channel)
        expected = log_mel(stereo[:, channel].astype(np.float32), seed="a-1-1")
        assert np.array_equal(frames_of(tmp_path / "out")["a-1-1"], expected)
    with pytest.raises(InputError, match="no channel 2"):
        prepare_audio(tmp_path / "a", tmp_path / "out", "--overwrite", "--channel", 2)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / "a" / "a-1-1.wav", tone, 44100)
    prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none", "--overwrite", "--resample")
    expected = log_mel(0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    loud = expected.argmax(axis=1)[50]
    assert np.abs(frames_of(tmp_path / "out")["a-1-1"] - expected)[10:90, loud].max() < 0.05
    assert "resampled to 16 kHz" in capsys.readouterr().out


def test_two_files_of_one_name_and_folders_without_audio_are_refused(corpus, tmp_path):
    shutil.copy(next(corpus.rglob("1-7-0000.flac")), corpus / "2" / "1-7-0000.flac")
    with pytest.raises(InputError, match=r"1/7/1-7-0000.flac and .*2/1-7-0000.flac are both utterance 1-7-0000"):
        prepare_audio(corpus, tmp_path / "out", "--utterance_id", "name")
    with pytest.raises(InputError, match="holds no audio"):
        prepare_audio(SAMPLE.parent.parent / "utils", tmp_path / "out")
    with pytest.raises(InputError, match="is not a directory"):
        prepare_audio(tmp_path / "nowhere", tmp_path / "out")


def test_files_that_systems_leave_behind_are_no_utterances(corpus, tmp_path):
    (corpus / "1" / "._1-7-0000.flac").write_bytes(b"left by macOS")
    prepare_audio(corpus, tmp_path / "out")
    assert len(load_lengths(tmp_path / "out")) == 5


def test_the_sample_in_the_repository_is_what_its_readme_says(tmp_path):
    prepare_audio(SAMPLE / "audio" / "train", tmp_path / "train")
    prepare_audio(SAMPLE / "audio" / "dev", tmp_path / "dev", "--norm_from", tmp_path / "train")
    for split in ("train", "dev"):
        prepare(SAMPLE / f"sample-{split}.blogmel.xz", tmp_path / f"{split}2")
        computed, shipped = frames_of(tmp_path / split), frames_of(tmp_path / f"{split}2")
        assert list(computed) == list(shipped)
        assert all(np.abs(computed[u] - shipped[u]).max() < 1e-3 for u in computed)
    ends = {}
    for line in (SAMPLE / "phones.ctm").read_text().splitlines():
        utterance, channel, start, duration, _phone = line.split()
        assert channel == "1" and abs(float(start) - ends.get(utterance, 0.0)) < 1e-6
        ends[utterance] = float(start) + float(duration)
    assert all(abs(ends[path.stem] - soundfile.info(path).duration) < 0.03 for path in REAL) and len(ends) == 5


@pytest.mark.parametrize("method, has_statistics", [("keep_if_same_size", False), ("log_mel", True)])
def test_audio_killed_half_way_ends_with_the_same_bytes(corpus, tmp_path, method, has_statistics):
    prepare_audio(corpus, tmp_path / "alone")
    arguments = ["--librispeech_audio", str(corpus), "--save_dir", str(tmp_path / "out"), "--num_workers", "0"]
    assert run_to_death(arguments, 4, method, "SIGKILL").returncode == -9
    assert (tmp_path / "out" / "normalization.json").exists() == has_statistics
    prepare_audio(corpus, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_speakers_by_folders_whose_names_are_not_utf_8_are_kept(tmp_path):
    folder = tmp_path / "corpus" / "speaker\udcff"
    folder.mkdir(parents=True)
    with (folder / "a.wav").open("wb") as file:
        soundfile.write(file, noise(), 16000, format="WAV")
    out = prepare_audio(tmp_path / "corpus", tmp_path / "out")
    assert list(Normalizer.load(out).statistics) == [folder.name]


def test_a_skipped_file_that_is_all_of_a_speaker_is_listed_with_what_is_wrong_with_it(corpus, tmp_path):
    (corpus / "9" / "9").mkdir(parents=True)
    (corpus / "9" / "9" / "9-9-0000.flac").write_bytes(next(corpus.rglob("1-*.flac")).read_bytes()[:2000])
    out = prepare_audio(corpus, tmp_path / "out", "--on_error", "skip")
    assert "9-9-0000\t" in (skipped := (out / "skipped.txt").read_text())
    assert "truncated or damaged" in skipped and "mean and variance" not in skipped
