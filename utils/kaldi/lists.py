"""Lists in text: a line for each utterance, recording or speaker."""

from collections.abc import Iterator
from pathlib import Path

from utils.kaldi.byte_reader import ByteReader
from utils.system.errors import InputError
from utils.system.reading import exists

MAX_LINE_BYTES = 16 << 20  # a line of spk2utt holds every utterance of a speaker
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_list(path: str | Path) -> Iterator[tuple[str, str]]:
    """Each line's place, file:line, and its text, without the end of the line; blank lines are skipped.

    Lines may end as on Windows. Bytes that are not UTF-8 are kept, since names of files may hold them. Raises
    InputError if the file is missing or damaged.
    """
    number = 0
    with ByteReader(path) as reader:
        if reader.peek(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            reader.take(len(BYTE_ORDER_MARK))
        while reader.peek(1):
            number += 1
            raw = reader.take_until(b"\n", MAX_LINE_BYTES)
            raw = reader.take(MAX_LINE_BYTES) if raw is None else raw
            if raw.strip():
                yield f"{path}:{number}", raw.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if reader.damage:
            raise InputError(f"the rest cannot be read: {reader.damage}", f"{path}:{number}")


def listed_file(name: str, listed_in: Path) -> Path:
    """The file that a list names: relative to the working directory, as in Kaldi, or else to the list's directory."""
    path = Path(name)
    return path if exists(path) or not exists(beside := listed_in.parent / path) else beside
