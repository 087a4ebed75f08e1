"""Reading and writing the prepared directory: one tensor per utterance, and lengths.pkl.

    <utterance id>.pt   float32 (max_seq_len, mel_dim), zero-padded at the end
    lengths.pkl         a pickled dict {'<utterance id>.pt': number of true frames}, written last

Files may be untrusted: none that is read here can run code, and its sizes and checksums are verified.
"""

import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from utils.system.errors import InputError, one_line
from utils.system.files import atomic_write, check_utterance_id
from utils.system.reading import MAX_FILE_BYTES, open_regular, read_bytes, reading
from utils.system.untrusted import load_untrusted

LENGTHS_FILE = "lengths.pkl"
TENSOR_SUFFIX, ARRAY_SUFFIX = ".pt", ".npy"
MAX_LENGTHS_BYTES = 1 << 30  # of lengths.pkl: some 28 million utterances
MAX_FRAMES = MAX_FILE_BYTES // 4  # of an utterance: each has one number or more

# The pickle opcodes of a dict of str to int, in the protocols 0 to 5
_STR_OPCODES = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_INT_OPCODES = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1")
_DICT_OPCODES = ("EMPTY_DICT", "DICT")
_OTHER_OPCODES = ("PROTO", "FRAME", "MARK", "STOP", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")


def save_tensor(path: Path, frames: torch.Tensor) -> None:
    """Write one tensor, whole or not at all. The same tensor always gives the same bytes."""
    if not frames.is_contiguous() or frames.untyped_storage().nbytes() != frames.nbytes:
        frames = frames.contiguous().clone()  # of a view, torch.save would write more, or in another order
    with atomic_write(path) as file:
        torch.save(frames, file)


def load_tensor(path: str | Path, dims: int = 2, may_be_half: bool = False) -> torch.Tensor:
    """The tensor of a .pt or .npy file: float32, dense, on the CPU.

    Args:
        path: the file.
        dims: how many dimensions it must have: 2 for (frames, size), 3 for (layers, frames, size).
        may_be_half: whether it may hold float16, as features of extraction may.

    Raises:
        InputError: the file is missing, damaged, would run code, or holds something else.
    """
    loaded = _load_array(Path(path)) if Path(path).suffix == ARRAY_SUFFIX else load_untrusted(path)
    if not isinstance(loaded, torch.Tensor):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a tensor")
    if may_be_half and loaded.dtype == torch.float16:
        loaded = loaded.float()
    if loaded.dtype != torch.float32 or loaded.dim() != dims:
        raise InputError(f"{path} holds {loaded.dtype} {tuple(loaded.shape)}, not float32 with {dims} dimensions")
    return loaded.detach()


def _load_array(path: Path) -> torch.Tensor:
    """The array of a .npy file, which is never larger than the file."""
    with reading(path), open_regular(path):
        try:
            return torch.from_numpy(np.array(np.lib.format.open_memmap(path, "r")))  # refuses pickled objects
        except (ValueError, TypeError, EOFError) as error:
            raise InputError(f"{path} is damaged, or no array of numbers: {one_line(error, 200)}") from error


def save_lengths(directory: Path, lengths: Mapping[str, int]) -> None:
    """Write lengths.pkl: the number of true frames for each utterance id (without '.pt'), in the order given."""
    with atomic_write(directory / LENGTHS_FILE) as file:
        pickle.dump({f"{utterance}{TENSOR_SUFFIX}": n for utterance, n in lengths.items()}, file, protocol=3)


def load_lengths(directory: str | Path) -> dict[str, int]:
    """Read lengths.pkl: the number of true frames for each utterance id (without '.pt'), in the file's order.

    Raises:
        InputError: the file is missing, damaged, would run code, or names a file outside the directory.
    """
    path = Path(directory) / LENGTHS_FILE
    if not path.is_file():
        raise InputError(f"{directory} has no {LENGTHS_FILE}: not a prepared directory, or preparing it was not done")
    content = read_bytes(path, MAX_LENGTHS_BYTES)
    try:
        names, frames = _read_dict(content)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is damaged or would run code: only a dict of str to int may be in it") from error
    lengths = {}
    for name, length in zip(names, frames, strict=True):
        if not name.endswith(TENSOR_SUFFIX) or not 1 <= length <= MAX_FRAMES:
            problem = f"{one_line(repr(name), 80)} is not '<id>.pt', or its length is not from 1 to {MAX_FRAMES}"
            raise InputError(f"{path} is damaged: {problem}")
        lengths[check_utterance_id(name.removesuffix(TENSOR_SUFFIX), str(path))] = length
    return lengths


def _read_dict(content: bytes) -> tuple[list[str], list[int]]:
    """The keys and values of a pickled dict of str to int. Nothing is unpickled; any other opcode is a ValueError."""
    dicts, keys, values = 0, [], []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _STR_OPCODES and len(keys) == len(values):
            keys.append(argument)
        elif opcode.name in _INT_OPCODES and len(keys) == len(values) + 1 and type(argument) is int:
            values.append(argument)
        elif opcode.name in _DICT_OPCODES:
            dicts += 1
        elif opcode.name not in _OTHER_OPCODES:
            raise ValueError(opcode.name)
    if dicts != 1 or len(keys) != len(values):
        raise ValueError("not one dict")
    return keys, values


def list_utterances(directory: Path, suffix: str = TENSOR_SUFFIX, advice: str = "") -> dict[str, int]:
    """`load_lengths` of a directory that must hold a file with this suffix for each utterance.

    Raises:
        InputError: lengths.pkl is missing or damaged, or names a file that is not there; with advice for that case.
    """
    lengths = load_lengths(directory)
    present = {entry.name for entry in directory.iterdir()}
    for utterance in lengths:
        if f"{utterance}{suffix}" not in present:
            raise InputError(f"{utterance}{suffix} is missing, but {LENGTHS_FILE} names it{advice}", str(directory))
    return lengths


def load_utterance(path: str | Path, length: int, may_be_half: bool = False) -> torch.Tensor:
    """A prepared utterance, float32 (max_seq_len, mel_dim).

    Raises:
        InputError: as of `load_tensor`; or it has fewer than `length` frames, or one that is not finite.
    """
    frames = load_tensor(path, may_be_half=may_be_half)
    if length > len(frames):
        raise InputError(f"{path} holds {len(frames)} frames, but {LENGTHS_FILE} says {length}")
    if not frames[:length].sum().isfinite():  # much faster than a look at each number; a large sum may be infinite
        bad = ~frames[:length].isfinite().all(dim=1)  # (length,)
        if bad.any():
            frame = f"frame {int(bad.nonzero()[0]) + 1} of {length}"
            raise InputError(f"{frame} has a number that is NaN or infinite; make this utterance again", str(path))
    return frames
