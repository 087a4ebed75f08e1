"""Audio listed in a table of tab-separated values, in one of two forms.

id<TAB>path[<TAB>start<TAB>end<TAB>speaker]    times in seconds, which may be empty, as may the speaker
fairseq's: a directory on the first line, then path<TAB>samples; ids are made from the paths
"""

from pathlib import Path

from utils.corpus.audio_source import AudioOptions, AudioSource, Entry, parse_span, raise_problems
from utils.corpus.speakers import BY_MAP, Speakers
from utils.kaldi.lists import listed_file, read_list
from utils.system.errors import InputError

MANIFEST_SUFFIX = ".tsv"
HEADER = ["id", "path", "start", "end", "speaker"]


def read_manifest(path: Path, options: AudioOptions) -> AudioSource:
    """The utterances of a manifest.

    Raises:
        InputError: a line is malformed, or an id is invalid or a duplicate; lists all problems.
    """
    entries, speakers, problems, root = [], {}, [], None
    for place, line in read_list(path):
        fields = [field.strip() for field in line.split("\t")]
        if root is None and not entries and len(fields) == 1:
            root = listed_file(fields[0], path)
            if not root.is_dir():
                raise InputError("neither id<TAB>path nor the directory of the paths below", place)
        elif root is not None:
            entries += _read_fairseq(fields, root, place, problems)
        elif entries or fields != HEADER[: len(fields)]:
            entries += _read_line(fields, path, place, problems)
            if len(fields) == len(HEADER) and fields[-1]:
                speakers[fields[0]] = fields[-1]
    raise_problems(problems)
    if not entries:
        raise InputError(f"{path} lists no audio")
    return AudioSource.of(entries, options, Speakers(BY_MAP, speakers, str(path)) if speakers else None)


def _read_fairseq(fields: list[str], root: Path, place: str, problems: list[str]) -> list[Entry]:
    """The entry of a line of fairseq's manifest."""
    if len(fields) != 2 or not fields[0] or not fields[1].isdecimal():
        problems.append(f"{place}: a line below the directory should be path<TAB>samples")
        return []
    return [Entry.of_file(root / fields[0], place, Path(fields[0]))]


def _read_line(fields: list[str], listed_in: Path, place: str, problems: list[str]) -> list[Entry]:
    """The entry of a line of ids."""
    utterance, name, start, end, *_ = (*fields, *[""] * (5 - len(fields)))
    span = parse_span(start or "0", end or "-1")
    if not 2 <= len(fields) <= len(HEADER) or not name or span is None:
        problems.append(f"{place}: a line should be id<TAB>path[<TAB>start<TAB>end<TAB>speaker], times in seconds")
        return []
    entry = Entry.of_file(listed_file(name, listed_in), place, utterance=utterance)
    return [entry.part(span)]
