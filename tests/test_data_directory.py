"""Facts about corpora as labs keep them: Kaldi data directories, manifests, TIMIT's layout, single files and pipes."""

import io
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
from preparing_runs import content, prepare

from utils.audio.frames import Span
from utils.audio.waveforms import read_waveform
from utils.corpus.find_source import find_source
from utils.corpus.normalization import Normalizer
from utils.corpus.prepared import load_lengths, load_tensor
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError

RATE = 16000
SPEAKERS = {"ann-1": "ann", "ann-2": "ann", "bob-1": "bob"}


def samples(seconds=0.5, seed=0, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def write(path, seconds=0.5, seed=0, rate=RATE, **form):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples(seconds, seed, rate), rate, **form)
    return path


def run(data, save_dir, *options):
    """Prepare anything; returns save_dir."""
    return prepare(data, save_dir, *options, option="--data")


def refusal(data, save_dir, *options):
    """The error of preparing, which leaves nothing behind, with its details."""
    with pytest.raises(InputError) as refused:
        run(data, save_dir, *options)
    assert not save_dir.exists()
    return "\n".join([*refused.value.details, str(refused.value)])


@pytest.fixture
def tree(tmp_path):
    """Three utterances of two speakers: <speaker>/<utterance>.wav."""
    for seed, (utterance, speaker) in enumerate(SPEAKERS.items()):
        write(tmp_path / "tree" / speaker / f"{utterance}.wav", seed=seed)
    return tmp_path / "tree"


@pytest.fixture
def data(tree, tmp_path):
    """The same as a Kaldi data directory."""
    directory = tmp_path / "data"
    directory.mkdir()
    wavs = "".join(f"{utterance} {tree}/{speaker}/{utterance}.wav\n" for utterance, speaker in SPEAKERS.items())
    (directory / "wav.scp").write_text(wavs)
    (directory / "utt2spk").write_text("".join(f"{u} {s}\n" for u, s in SPEAKERS.items()))
    return directory


def tensors(directory):
    return {name: data for name, data in content(directory).items() if name.endswith((".pt", ".pkl"))}


def test_a_data_directory_gives_the_tensors_of_its_tree(tree, data, tmp_path):
    expected = run(tree, tmp_path / "expected")
    assert tensors(run(data, tmp_path / "wavs")) == tensors(expected)
    (data / "wav.scp").write_text(f"all {tree.parent}/all.flac\n")
    whole = [soundfile.read(tree / s / f"{u}.wav", dtype="int16")[0] for u, s in SPEAKERS.items()]
    soundfile.write(tree.parent / "all.flac", np.concatenate(whole), RATE)
    (data / "segments").write_text("".join(f"{u} all {i / 2} {i / 2 + 0.5}\n" for i, u in enumerate(SPEAKERS)))
    found = run(data, tmp_path / "segments")
    assert tensors(found) == tensors(expected)
    assert Normalizer.load(found).speakers_from == "a map of speakers (utt2spk)"


def test_a_manifest_gives_the_tensors_of_its_tree(tree, tmp_path):
    expected = run(tree, tmp_path / "expected")
    lines = [f"{u}\ttree/{s}/{u}.wav\t\t\t{s}" for u, s in SPEAKERS.items()]
    lines.insert(0, "\ufeffid\tpath\tstart\tend\tspeaker")
    (tmp_path / "list.tsv").write_bytes("\r\n".join(lines).encode())
    assert tensors(run(tmp_path / "list.tsv", tmp_path / "out")) == tensors(expected)
    lines = [str(tree), *(f"{s}/{u}.wav\t8000" for u, s in SPEAKERS.items())]
    (tmp_path / "fairseq.tsv").write_text("\n".join(lines))
    assert tensors(run(tmp_path / "fairseq.tsv", tmp_path / "fairseq")) == tensors(expected)


def test_a_manifest_whose_files_move_to_another_speakers_folder_is_not_taken_for_the_same(tree, tmp_path):
    def write_list():
        (tmp_path / "list.tsv").write_text("".join(f"{path.stem}\t{path}\n" for path in sorted(tree.glob("*/*"))))

    write_list()
    run(tmp_path / "list.tsv", tmp_path / "out", "--norm", "speaker")
    first, *_, last = sorted(tree.glob("*/*"))
    first.rename(last.parent / first.name)
    write_list()
    with pytest.raises(InputError, match="speakers"):
        run(tmp_path / "list.tsv", tmp_path / "out", "--norm", "speaker")


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "opus"])
def test_a_segment_is_the_part_of_the_whole(tmp_path, form):
    kind = {"subtype": "OPUS", "format": "OGG"} if form == "opus" else {}
    path = write(tmp_path / f"long.{form}", 4, **kind)
    whole = read_waveform(path)
    for start, end in ((0, 1), (1.25, 2.5), (3, 4)):
        part = read_waveform(path, span=Span(start, end))
        assert len(part) == round((end - start) * RATE)
        assert np.array_equal(part, whole[round(start * RATE) : round(end * RATE)])
    assert len(read_waveform(path, span=Span(3.5))) == len(whole) - 3.5 * RATE


def test_a_segment_may_end_a_little_late_is_then_listed_and_more_is_an_error(data, tree, tmp_path):
    wav = tree / "ann" / "ann-1.wav"
    (data / "segments").write_text("a ann-1 0.1 0.6\nb ann-1 0 -1\n")
    (data / "utt2spk").write_text("a ann\nb ann\n")
    out = run(data, tmp_path / "out")
    assert load_lengths(out) == {"a": 38, "b": 48}
    assert (out / "shorter.txt").read_text() == f"a\t{wav}: its segment ends 0.100 s after the recording\n"
    for segment in ("0.1 1.1", "0.5 0.6", "7 8", "7 -1"):
        (data / "segments").write_text(f"a ann-1 {segment}\nb ann-1 0 0.4\n")
        with pytest.raises(InputError, match=r"utterance a: the segment .* is not there: the recording has 0\.50 s"):
            run(data, tmp_path / "other", "--overwrite")
        skipping = run(data, tmp_path / "other", "--on_error", "skip", "--overwrite")
        assert list(load_lengths(skipping)) == ["b"] and (skipping / "skipped.txt").read_text().startswith("a\t")


def test_lists_of_windows_with_tabs_and_names_with_spaces_are_read(data, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "my tree")
    text = (data / "wav.scp").read_text().replace("/tree/", "/my tree/").replace(" ", "\t", 1)
    (data / "wav.scp").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (data / "utt2spk").write_bytes(b"\xef\xbb\xbf" + (data / "utt2spk").read_bytes().replace(b"\n", b"\r\n"))
    expected = run(tree, tmp_path / "expected")
    assert tensors(run(data, tmp_path / "out")) == tensors(expected)


def test_relative_paths_are_those_of_the_working_directory_or_else_of_the_list(data, tree, tmp_path, monkeypatch):
    wavs = (data / "wav.scp").read_text()
    (data / "wav.scp").write_text(wavs.replace(str(tree), "../tree"))
    beside = run(data, tmp_path / "beside")
    monkeypatch.chdir(tmp_path)
    (data / "wav.scp").write_text(wavs.replace(str(tree), "tree"))
    assert tensors(run(data, tmp_path / "here")) == tensors(beside)


def test_a_command_is_never_run_and_the_way_out_is_told(data, tmp_path):
    (data / "wav.scp").write_text(f"a touch {tmp_path}/proof |\nb x.wav\nc cat y |\n")
    write_ark(data / "feats.ark", [("a", np.ones((2, 2), np.float32))])
    told = refusal(data, tmp_path / "out")
    assert "wav.scp:1: recording a: refused" in told and "wav.scp:3: recording c: refused" in told
    assert "--data DIR" in told and "feats.scp" in told and not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name, text, told", [
    ("wav.scp", "a\n", "wav.scp:1: a line should be `recording file`"),
    ("wav.scp", "", "wav.scp holds no recording"),
    ("wav.scp", "a x.wav\na y.wav\n", "wav.scp:2: recording a is at .*wav.scp:1, too"),
    ("wav.scp", "../a x.wav\n", "wav.scp:1: refused: the utterance id '../a' is empty or starts with a dot"),
    ("wav.scp", "a x.m4a\n", "x.m4a cannot be read: convert it .ffmpeg"),
    ("segments", "", "segments holds no segment"),
    ("segments", "u ann-1 0\n", "segments:1: a line should be `utterance recording start end"),
    ("segments", "u ann-1 0.3 0.2\n", "segments:1: a line should be .* 0 <= start < end"),
    ("segments", "u ann-1 -1 0.2\n", "segments:1: a line should be"),
    ("segments", "u ann-1 0 nan\n", "segments:1: a line should be"),
    ("segments", "u ann-1 0 inf\nv eve 0 1\n", "segments:1: a line should be"),
    ("segments", "u eve 0 1\n", "segments:1: wav.scp has no recording eve"),
    ("segments", "u ann-1 0 1\nu ann-1 0 1\n", "segments:1 and .*segments:2 are both utterance u"),
    ("segments", "a/u ann-1 0 1\n", "segments:1: refused: the utterance id 'a/u'"),
    ("utt2spk", "ann-1 ann x\n", "utt2spk:1: a line should be `utterance speaker`"),
])  # fmt: skip
def test_a_damaged_data_directory_is_refused_and_nothing_is_left(data, tmp_path, name, text, told):
    (data / name).write_text(text)
    assert re.search(told, refusal(data, tmp_path / "out"))


def test_who_speaks_must_be_known_where_it_matters(data, tmp_path):
    (data / "utt2spk").unlink()
    assert "data has no utt2spk: give --utt2spk" in refusal(data, tmp_path / "out", "--norm", "speaker")
    assert len(load_lengths(run(data, tmp_path / "out", "--norm", "utterance"))) == 3
    (data / "spk2utt").write_text("ann ann-1 ann-2\n")
    with pytest.raises(InputError, match=r"spk2utt has no speaker for utterance bob-1"):
        run(data, tmp_path / "other", "--norm", "speaker")


def test_what_a_data_directory_does_not_use_is_said(data, tmp_path, capsys):
    (data / "segments").write_text("ann-1 ann-1 0 0.4\n")
    run(data, tmp_path / "out")
    said = capsys.readouterr().out
    assert "2 recording without a segment" in said and "utt2spk names 2 utterances that have no audio" in said


def test_features_are_read_where_there_is_no_wav_scp(data, tmp_path):
    (data / "wav.scp").unlink()
    rng = np.random.default_rng(0)
    write_ark(data / "raw.ark", [(u, rng.normal(size=(9, 4)).astype(np.float32)) for u in SPEAKERS])
    (data / "raw.scp").rename(data / "feats.scp")
    out = run(data, tmp_path / "out", "--norm", "speaker")
    assert load_lengths(out) == dict.fromkeys(SPEAKERS, 9) and list(Normalizer.load(out).statistics) == ["ann", "bob"]
    expected = tensors(run(data, tmp_path / "plain"))
    for prefix in ("scp", "scp,p"):
        assert tensors(run(f"{prefix}:{data / 'feats.scp'}", tmp_path / prefix)) == expected
    shutil.copy(data / "raw.ark", data / "features.of.mine")
    assert tensors(run(f"ark:{data / 'features.of.mine'}", tmp_path / "ark")) == expected


def statistics(*utterances):
    """Kaldi's, of utterances (frames, mel_dim)."""
    frames = np.concatenate(utterances).astype(np.float64)
    return np.stack([np.append(frames.sum(0), len(frames)), np.append(np.square(frames).sum(0), 0)]).astype(np.float32)


@pytest.fixture
def with_cmvn(data):
    """A data directory of features, with cmvn.scp by speaker and global statistics in a file without an id."""
    (data / "wav.scp").unlink()
    rng = np.random.default_rng(0)
    frames = {utterance: rng.normal(9, 3, (50, 4)).astype(np.float32) for utterance in SPEAKERS}
    write_ark(data / "feats.ark", frames.items())
    ann, bob = statistics(frames["ann-1"], frames["ann-2"]), statistics(frames["bob-1"])
    write_ark(data / "cmvn.ark", [("ann", ann), ("bob", bob)])
    write_ark(data / "all.ark", [("x", ann + bob)])
    (data / "global_cmvn.stats").write_bytes((data / "all.ark").read_bytes().removeprefix(b"x "))
    rows = "\n".join(" ".join(map(repr, row)) for row in (ann + bob).astype(float).tolist())
    (data / "global.txt").write_text(f" [\n{rows} ]\n")
    return data


def loaded(directory):
    return {u: load_tensor(directory / f"{u}.pt")[:n].numpy() for u, n in load_lengths(directory).items()}


@pytest.mark.parametrize("name, options, norm", [
    ("", (), "speaker-mean"), ("cmvn.scp", (), "speaker-mean"), ("cmvn.ark", ("--norm", "speaker"), "speaker"),
    ("global_cmvn.stats", (), "global-mean"), ("global.txt", ("--norm", "global"), "global"),
])  # fmt: skip
def test_statistics_of_kaldi_scale_as_those_gathered_here_do(with_cmvn, tmp_path, name, options, norm):
    expected = loaded(run(with_cmvn, tmp_path / "expected", "--norm", norm))
    found = loaded(run(with_cmvn, tmp_path / "out", "--norm_from", with_cmvn / name, *options))
    assert all(np.abs(found[u] - expected[u]).max() < 1e-4 for u in SPEAKERS) and list(found) == list(SPEAKERS)
    assert Normalizer.load(tmp_path / "out").mode == norm


def test_statistics_are_not_taken_for_features_nor_features_for_statistics(with_cmvn, tmp_path):
    for name in ("cmvn.scp", "cmvn.ark", "scp:cmvn.scp"):
        told = refusal(name.replace("cmvn.", f"{with_cmvn}/cmvn."), tmp_path / "out")
        assert "utterance ann: Kaldi's statistics of frames, not features: --norm_from" in told
    for name, options, told in (
        ("feats.scp", (), "ann-1 is a matrix of (50, 4), not Kaldi's statistics"),
        ("cmvn.scp", ("--norm", "global"), "holds statistics for --norm speaker or speaker-mean, not global"),
        ("global.txt", ("--norm", "speaker"), "holds statistics for --norm global or global-mean, not speaker"),
        ("nothing.scp", (), "nothing.scp does not exist"),
    ):
        assert told in refusal(with_cmvn, tmp_path / "out", "--norm_from", with_cmvn / name, *options)


def test_a_job_that_ends_before_anything_is_done_leaves_nothing_and_may_be_given_other_options(tmp_path):
    slow = write(tmp_path / "a" / "a-1-1.wav", rate=8000)
    assert "--resample" in refusal(slow, tmp_path / "out")
    run(slow, tmp_path / "out", "--resample")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        run(slow, tmp_path / "empty", "--norm", "none")
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(InputError, match="was made with resample True, not False"):
        run(slow, tmp_path / "out")
    assert list(load_lengths(tmp_path / "out")) == ["a-1-1"]


def make_timit(root, form="NIST"):
    for seed, name in enumerate(("DR1/FCJF0/SA1", "DR1/FCJF0/SI648", "DR2/MABC0/SA1")):
        write(root / f"{name}.WAV", seed=seed, format=form)
    return root


def test_files_of_the_same_name_become_their_paths_and_directories_tell_who_speaks(tmp_path, capsys):
    out = run(make_timit(tmp_path / "timit"), tmp_path / "out")
    assert list(load_lengths(out)) == ["DR1-FCJF0-SA1", "DR1-FCJF0-SI648", "DR2-MABC0-SA1"]
    assert list(Normalizer.load(out).statistics) == ["FCJF0", "MABC0"]  # not DR1, which stands where LibriSpeech's do
    said = capsys.readouterr().out
    assert said.count("have the same name: utterance ids are paths") == 1
    assert "are both utterance SA1; --utterance_id path" in refusal(
        tmp_path / "timit", tmp_path / "x", "--utterance_id", "name"
    )
    by_path = run(tmp_path / "timit/DR1", tmp_path / "dr1", "--utterance_id", "path")
    assert list(load_lengths(by_path)) == ["FCJF0-SA1", "FCJF0-SI648"]


def test_paths_that_are_the_same_with_dashes_are_refused(tmp_path):
    for name in ("a-b/c.wav", "a/b-c.wav", "a/x.wav", "b/x.wav"):
        write(tmp_path / "a" / name)
    assert "are both utterance a-b-c" in refusal(tmp_path / "a", tmp_path / "out")


def test_a_listed_file_that_is_missing_is_named_once(data, tmp_path):
    (data / "wav.scp").write_text(f"ann-1 {tmp_path}/gone.wav\n")
    told = refusal(data, tmp_path / "out", "--norm", "global")
    assert told.startswith(f"{tmp_path}/gone.wav: utterance ann-1: does not exist") and told.count("gone") == 1


def test_a_few_files_and_patterns(tree, tmp_path, monkeypatch):
    files = sorted(tree.rglob("*.wav"))
    found = find_source(files[:2])
    assert [file.id for file in found.utterances()] == ["ann-1", "ann-2"]
    assert [file.id for file in find_source([tree / "*" / "*-1.wav"]).utterances()] == ["ann-1", "bob-1"]
    assert [file.id for file in find_source([files[0], tree / "ann", files[2]]).utterances()] == list(SPEAKERS)
    monkeypatch.chdir(tree)
    expected = find_source([tree / "ann/ann-1.wav"]).files[0].load()
    assert np.array_equal(find_source([type(tree)("ann/ann-1.wav")]).files[0].load(), expected)
    with pytest.raises(InputError, match=r"\*\.flac does not exist"):
        find_source([tree / "*.flac"])
    (tree / "x.m4a").touch()
    with pytest.raises(InputError, match=r"x\.m4a cannot be read: convert it \(ffmpeg"):
        find_source([tree / "x.m4a"])


def test_kinds_are_not_mixed(tree, data, tmp_path):
    write_ark(tmp_path / "f.ark", [("a", np.ones((2, 2), np.float32))])
    for paths in ([tree, data], [tree, tmp_path / "f.ark"], [data, data]):
        with pytest.raises(InputError, match="give one directory, audio files, or archives only"):
            find_source(paths)
    with pytest.raises(InputError, match=r"wav\.scp is a list of audio: give its directory: --data .*data$"):
        find_source([data / "wav.scp"])
    for path, told in (
        (data / "wav.scp", "is a list of audio: give its directory: --data"),
        (tree, "give it to --data"),
    ):
        with pytest.raises(InputError, match=told):
            prepare(path, tmp_path / "out", option="--librispeech_from_kaldi")


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_audio_on_standard_input_is_read(tmp_path, monkeypatch, form):
    path = write(tmp_path / "a.wav", format=form)
    with path.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        out = run("-", tmp_path / "out", "--norm", "none", "--dither", 0)
    assert load_lengths(out) == {"stdin": 48}


def test_standard_input_is_named_in_errors_and_is_its_own_speaker(tmp_path, monkeypatch, capsys):
    stereo = tmp_path / "a.wav"
    soundfile.write(stereo, np.stack([samples(), samples()], 1), RATE)
    for more in ((), ("--channel", 0)):
        with stereo.open("rb") as file:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            if more:
                run("-", tmp_path / "out", "--norm", "speaker", *more)
            else:
                told = refusal("-", tmp_path / "out", "--norm", "speaker")
    assert told.startswith("standard input: utterance stdin: 2 channels") and "/stdin-" not in told
    assert "of little use: stdin" in capsys.readouterr().out


def test_a_flac_of_unknown_length_is_read_and_listed(tmp_path):
    path = write(tmp_path / "a" / "s-1-1.flac", 3)
    expected = read_waveform(path)
    header = bytearray(path.read_bytes())
    header[21:26] = bytes([header[21] & 0xF0, 0, 0, 0, 0])
    path.write_bytes(header)
    assert np.array_equal(read_waveform(path), expected)
    out = run(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert "does not say how long it is" in (out / "shorter.txt").read_text()
    path.write_bytes(header[: len(header) * 2 // 3])
    with pytest.raises(InputError, match="truncated or damaged"):
        run(tmp_path / "a", tmp_path / "other", "--norm", "none")
