"""Reading and writing the prepared directory: one tensor an utterance, and lengths.pkl.

    <utterance id>.pt   float32 (max_seq_len, mel_dim), zero-padded at the end
    lengths.pkl         a pickled dict {'<utterance id>.pt': number of true frames}, written last

Files may come from strangers: no file read here can run code, and none is believed before its sizes and checksums
agree.
"""

import argparse
import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError, one_line
from utils.files import atomic_write, check_utterance_id

LENGTHS_FILE = "lengths.pkl"
TENSOR_SUFFIX = ".pt"
MAX_FILE_BYTES = 2 << 30  # larger than any utterance, lengths.pkl or APC checkpoint
ZIP_DIRECTORY = 0x10  # an attribute for which PyTorch's reader reads nothing, and hands out memory as it finds it
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how PyTorch before 1.6 starts a file

# What a dict of str to int needs, in the pickle protocols 0 to 5. Nothing here can name a class or a function.
_DICT_OF_INT_OPCODES = (
    pickle.PROTO + pickle.FRAME + pickle.MARK + pickle.STOP
    + pickle.EMPTY_DICT + pickle.DICT + pickle.SETITEM + pickle.SETITEMS
    + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8
    + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG + pickle.LONG1
    + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE
    + pickle.GET + pickle.BINGET + pickle.LONG_BINGET
)  # fmt: skip


class _DictOfIntUnpickler(pickle._Unpickler):
    """An unpickler that can build only dict, str and int: it knows no other opcode.

    The pure-Python one, because its memo is a dict: in the C one a few bytes can ask for gigabytes of memo.
    """

    dispatch = {opcode: pickle._Unpickler.dispatch[opcode] for opcode in _DICT_OF_INT_OPCODES}  # noqa: RUF012


class _Unread:
    """Stands for an object of a checkpoint's options that is none of ours: takes anything, does nothing."""

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# What options and optimizers are known to hold: paths, and numpy's scalars
_UNREAD_NAMES = (
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode",
)  # fmt: skip
_UNREAD = [(_Unread, name) for name in _UNREAD_NAMES]


def read_bytes(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A whole file of at most `max_bytes`.

    Raises:
        InputError: there is no such file, or it is larger, or a directory, pipe or device.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or device could be read for ever
            raise InputError(f"{path} is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size) if size <= max_bytes else b""
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path} is missing") from error
    if size > max_bytes:
        raise InputError(f"{path} is larger than {max_bytes >> 30} GiB: not a file of this project")
    return content


def load_untrusted(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """What torch.save wrote to a file, on the CPU: tensors and plain containers only.

    Reads both PyTorch's zip format (whose checksums are verified: torch.load does not) and the format of PyTorch
    before 1.6.

    Raises:
        InputError: the file is missing, damaged, no PyTorch file, or would run code.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes)
    if content.startswith(ZIP_MAGIC):
        _check_zip(path, content)
    elif not content.startswith(LEGACY_MAGIC):
        raise InputError(f"{path} is damaged or is not a PyTorch file")
    try:
        # s3prl's checkpoints hold their options in a Namespace; a damaged file also makes torch.load warn
        with torch.serialization.safe_globals([argparse.Namespace, *_UNREAD]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error))  # what torch.load names when it refuses a pickle
        reason = f"would run code ({code[1]})" if code else f"is damaged: {one_line(error, 200)}"
        raise InputError(f"{path} {reason}") from error
    for tensor in _tensors_of(loaded):
        if tensor.layout != torch.strided or max(tensor.untyped_storage().nbytes(), tensor.nbytes) > len(content):
            raise InputError(f"{path} is damaged: a tensor in it is larger than the file, or is not dense")
    return loaded


def _check_zip(path: Path, content: bytes) -> None:
    """Refuse a PyTorch zip file whose members are compressed, twice there, overlap the end, or fail their checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            stored = all(m.compress_type == zipfile.ZIP_STORED and m.file_size <= len(content) for m in members)
            plain = not any(m.external_attr & ZIP_DIRECTORY for m in members)
            plain &= len({m.filename for m in members}) == len(members)  # else one hides another's checksum
            intact = (
                stored and plain and sum(m.file_size for m in members) <= len(content) and archive.testzip() is None
            )
    except Exception as error:  # zipfile raises nearly anything on a damaged file
        raise InputError(f"{path} is damaged: {one_line(error, 200)}") from error
    if not intact:
        raise InputError(f"{path} is damaged: its checksums or sizes do not agree")


def _tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    found, open_values, seen = [], [value], set()
    while open_values:
        value = open_values.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            open_values.extend(value.values() if isinstance(value, Mapping) else value)
    return found


def save_tensor(path: Path, frames: torch.Tensor) -> None:
    """Write one tensor, whole or not at all. The same tensor always gives the same bytes."""
    with atomic_write(path) as file:
        torch.save(frames.contiguous().clone() if _is_view(frames) else frames, file)


def _is_view(tensor: torch.Tensor) -> bool:
    """Whether torch.save would write more than the tensor's own elements, or not in their order."""
    return not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes


def load_tensor(path: str | Path, dims: int = 2) -> torch.Tensor:
    """One utterance's tensor.

    Args:
        path: a .pt file.
        dims: how many dimensions it must have: 2 for (frames, size), 3 for (layers, frames, size).

    Returns:
        float32, dense, on the CPU.

    Raises:
        InputError: the file is missing, damaged, would run code, or holds something else.
    """
    loaded = load_untrusted(path)
    if not isinstance(loaded, torch.Tensor):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a tensor")
    if loaded.dtype != torch.float32 or loaded.dim() != dims:
        raise InputError(f"{path} holds {loaded.dtype} {tuple(loaded.shape)}, not float32 with {dims} dimensions")
    return loaded


def save_lengths(directory: Path, lengths: Mapping[str, int]) -> None:
    """Write lengths.pkl, in the order given.

    Args:
        directory: the prepared directory.
        lengths: number of true frames for each utterance id (without '.pt').
    """
    with atomic_write(directory / LENGTHS_FILE) as file:
        pickle.dump({f"{utterance}{TENSOR_SUFFIX}": n for utterance, n in lengths.items()}, file, protocol=3)


def load_lengths(directory: str | Path) -> dict[str, int]:
    """Read lengths.pkl with an unpickler that can build only dict, str and int.

    Returns:
        The number of true frames for each utterance id (without '.pt'), in the file's order.

    Raises:
        InputError: the file is missing, damaged, would run code, or names a file outside the directory.
    """
    path = Path(directory) / LENGTHS_FILE
    if not path.is_file():
        raise InputError(
            f"{directory} has no {LENGTHS_FILE}: not a prepared directory, or prepare_data.py was not done"
        )
    try:
        content = _DictOfIntUnpickler(io.BytesIO(read_bytes(path))).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is damaged or would run code: only a dict of str to int may be in it") from error
    if type(content) is not dict:
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, not a dict")
    lengths = {}
    for name, length in content.items():
        if type(name) is not str or type(length) is not int or not name.endswith(TENSOR_SUFFIX) or length < 1:
            raise InputError(f"{path} is damaged: {one_line(repr((name, length)), 80)} is not ('<id>.pt', frames)")
        lengths[check_utterance_id(name.removesuffix(TENSOR_SUFFIX), str(path))] = length
    return lengths


def list_utterances(directory: Path) -> dict[str, int]:
    """The true frames of each utterance of a prepared directory, in the order of its lengths.pkl.

    Raises:
        InputError: lengths.pkl is missing or damaged, or names a tensor that is not there.
    """
    lengths = load_lengths(directory)
    present = {entry.name for entry in directory.iterdir()}
    for utterance in lengths:
        if f"{utterance}{TENSOR_SUFFIX}" not in present:
            raise InputError(f"{directory}: {utterance}{TENSOR_SUFFIX} is missing, but {LENGTHS_FILE} names it")
    return lengths


def load_utterance(path: str | Path, length: int) -> torch.Tensor:
    """A prepared utterance, float32 (max_seq_len, mel_dim).

    Raises:
        InputError: as of `load_tensor`; or it has fewer than `length` frames.
    """
    frames = load_tensor(path)
    if length > len(frames):
        raise InputError(f"{path} holds {len(frames)} frames, but {LENGTHS_FILE} says {length}")
    return frames
