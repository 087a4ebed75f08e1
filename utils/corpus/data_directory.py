"""Kaldi's data directory.

wav.scp            recording, audio file; a command ("sox ... |") is refused, never run
segments           utterance, recording, start, end in seconds (-1: the recording's), perhaps a channel; without this
                   file each recording is an utterance
utt2spk, spk2utt   utterance, speaker; or speaker, utterances
feats.scp          read where there is no wav.scp
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from utils.corpus.audio_source import AudioOptions, AudioSource, Entry, parse_span, raise_problems
from utils.corpus.sources import ArchiveSource, Source
from utils.corpus.speakers import FROM_IDS, LIBRISPEECH_ID, Speakers
from utils.corpus.utterance import Utterance
from utils.kaldi.lists import listed_file, read_list
from utils.system.errors import InputError, one_line

WAV, FEATS, SEGMENTS, UTT2SPK, SPK2UTT = "wav.scp", "feats.scp", "segments", "utt2spk", "spk2utt"


def is_data_directory(directory: Path) -> bool:
    """Whether it lists audio or features as Kaldi does."""
    return any((directory / name).is_file() for name in (WAV, FEATS))


def read_data_directory(directory: Path, options: AudioOptions) -> Source:
    """The utterances of a data directory.

    Raises:
        InputError: an entry is a command or malformed, or an id is invalid or a duplicate; lists all problems.
    """
    if not (directory / WAV).is_file():
        features = ArchiveSource([directory / FEATS], front_end=options.archives_of)
        return replace(features, speakers=_read_speakers(directory, features.utterances()))
    entries, not_read = _read_recordings(directory / WAV), Counter()
    if (directory / SEGMENTS).is_file():
        recordings = {entry.id: entry for entry in entries}
        entries, used = _read_segments(directory / SEGMENTS, recordings)
        if unused := recordings.keys() - used:
            not_read["recording without a segment"] = len(unused)
    speakers, notes = _read_speakers(directory, entries), ()
    if unknown := speakers.of_utterance.keys() - {entry.id for entry in entries}:
        notes = (f"{speakers.source} names {len(unknown)} utterances that have no audio, such as {min(unknown)}",)
    return AudioSource.of(entries, options, speakers, not_read, notes)


def _read_speakers(directory: Path, utterances: Iterable[Entry | Utterance]) -> Speakers:
    """Who speaks, by a map, or where there is none by ids that all have LibriSpeech's form."""
    for name in (UTT2SPK, SPK2UTT):
        if (directory / name).is_file():
            return Speakers.read(directory / name, speaker_first=name == SPK2UTT)
    if all(LIBRISPEECH_ID.fullmatch(utterance.id) for utterance in utterances):
        return FROM_IDS
    advice = "give --utt2spk or --spk2utt, or another --norm"
    return Speakers(problem=f"{directory} has no {UTT2SPK}", advice=advice)


def _read_recordings(wav_scp: Path) -> list[Entry]:
    """The entry of each recording. Raises InputError for lines of another form and duplicate ids."""
    entries, problems, first = [], [], {}
    feats = wav_scp.with_name(FEATS)
    instead = f", or remove {wav_scp.name} to read {FEATS}" if feats.is_file() else ""
    for place, line in read_list(wav_scp):
        recording, name = (*line.strip().split(None, 1), "")[:2]
        what = f"recording {one_line(recording, 80)}"
        if not name:
            problems.append(f"{place}: a line should be `recording file`")
        elif "|" in name or name == "-":
            problems.append(
                f"{place}: {what}: refused: {one_line(repr(name), 120)} is a command or a pipe, which is never run; "
                f"give the directory of the audio itself: --data DIR (and --utt2spk){instead}"
            )
        elif (other := first.setdefault(recording, place)) != place:
            problems.append(f"{place}: {what} is at {other}, too")
        else:
            entries.append(Entry.of_file(listed_file(name, wav_scp), place, utterance=recording))
    raise_problems(problems)
    if not entries:
        raise InputError(f"{wav_scp} holds no recording")
    return entries


def _read_segments(path: Path, recordings: dict[str, Entry]) -> tuple[list[Entry], set[str]]:
    """The entry of each segment, and the recordings that have one.

    Raises:
        InputError: lines of another form and unknown recordings; lists them all.
    """
    entries, problems, used = [], [], set()
    for place, line in read_list(path):
        fields = line.split()
        span = parse_span(*fields[2:4]) if len(fields) in (4, 5) else None
        channel = fields[4] if len(fields) == 5 else None
        if span is None or not (channel is None or channel.isdecimal()):
            form = "utterance recording start end [channel]"
            problems.append(f"{place}: a line should be `{form}`, in seconds, with 0 <= start < end")
        elif fields[1] not in recordings:
            problems.append(f"{place}: {WAV} has no recording {one_line(fields[1], 80)}")
        else:
            entry = recordings[fields[1]].part(span)._replace(id=fields[0], place=place)
            entries.append(entry if channel is None else entry._replace(channel=int(channel)))
            used.add(fields[1])
    raise_problems(problems)
    if not entries:
        raise InputError(f"{path} holds no segment")
    return entries, used
