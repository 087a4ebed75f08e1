"""Reading files that may come from strangers: none can run code, and none is believed before its sizes agree."""

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.system.errors import InputError, one_line
from utils.system.reading import MAX_FILE_BYTES, read_bytes

MAX_OPCODES = 1 << 19  # of a pickle: a state dict has about 20 a tensor
MAX_NESTING = 200  # of containers
ZIP_DIRECTORY = 0x10  # an attribute for which PyTorch's reader reads nothing, and hands out memory as it finds it
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how PyTorch before 1.6 starts a file


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
# Of what torch.load allows, that which tensors, state dicts and options are made of: not, say, a bytearray of any size
_ALLOWED_NAMES = re.compile(
    "|".join(map(re.escape, _UNREAD_NAMES))
    + r"|torch(\.cuda)?\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|device|bool|b?float\d+|u?int\d+)|collections\.(OrderedDict|Counter)|builtins\.(set|complex)"
    r"|argparse\.Namespace"
)


def load_untrusted(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """What torch.save wrote to a file, on the CPU: tensors and plain containers only.

    Reads both PyTorch's zip format (whose checksums are verified: torch.load does not) and the format of PyTorch
    before 1.6.

    Raises:
        InputError: the file is missing, damaged, no PyTorch file, or would run code.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes)
    try:
        if content.startswith(ZIP_MAGIC):
            _check_zip(path, content)
            _check_pickle(path, io.BytesIO(torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")))
        elif content.startswith(LEGACY_MAGIC):
            stream = io.BytesIO(content)
            for _ in ("magic number", "protocol", "system", "object", "names of the storages"):
                _check_pickle(path, stream)
        else:
            raise InputError(f"{path} is damaged or is not a PyTorch file")
        # s3prl's checkpoints hold their options in a Namespace; a damaged file also makes torch.load warn
        with torch.serialization.safe_globals([argparse.Namespace, *_UNREAD]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes zipfile, pickletools and torch.load raise nearly anything
        raise InputError(f"{path} is damaged: {one_line(error, 200)}") from error
    _check_values(path, loaded, len(content))
    return loaded


def _check_pickle(path: Path, stream: io.BytesIO) -> None:
    """Refuse a pickle before it is loaded: one that runs code, is too long, or nests too deeply.

    Follows the stack of the unpickler, with the nesting depth of each value in its place. (Hashing a tuple, a key of a
    dict, recurses for each level without a limit: at a million levels the interpreter crashes.)
    """
    stack, marks, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name, takes = opcode.name, opcode.stack_before
        if name == "GLOBAL" and not _ALLOWED_NAMES.fullmatch(argument.replace(" ", ".")):
            raise InputError(f"{path} would run code ({one_line(argument.replace(' ', '.'), 80)})")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        else:
            is_marked = pickletools.markobject in takes
            start = marks.pop() - takes.index(pickletools.markobject) if is_marked else len(stack) - len(takes)
            depth = max(stack[start:], default=0) + 1
            if depth > MAX_NESTING or count > MAX_OPCODES:
                raise InputError(f"{path} is damaged: its pickle has more than {MAX_NESTING} levels or "
                                 f"{MAX_OPCODES} opcodes")  # fmt: skip
            stack[start:] = [depth] * len(opcode.stack_after)


def _check_zip(path: Path, content: bytes) -> None:
    """Refuse a PyTorch zip file whose members are compressed, twice there, overlap the end, or fail their checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        stored = all(m.compress_type == zipfile.ZIP_STORED and m.file_size <= len(content) for m in members)
        plain = not any(m.external_attr & ZIP_DIRECTORY for m in members)
        plain &= len({m.filename for m in members}) == len(members)  # else one hides another's checksum
        fits = sum(m.file_size for m in members) <= len(content)
        if not (stored and plain and fits and archive.testzip() is None):
            raise InputError(f"{path} is damaged: its checksums or sizes do not agree")


def _check_values(path: Path, loaded: Any, num_bytes: int) -> None:
    """Refuse tensors that are not plain numbers on the CPU or that hold more, all together, than the file.

    Containers are looked into once for each place they are in: what refers to itself nests too deeply, and a tensor
    that is in a thousand places, each of which may become a copy, counts a thousand times.
    """
    waiting, places, tensor_bytes = [(loaded, 1)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        places += 1
        if depth > MAX_NESTING or places > MAX_OPCODES:
            raise InputError(f"{path} is damaged: it has more than {MAX_NESTING} levels or {MAX_OPCODES} values")
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
                raise InputError(f"{path} is damaged: a tensor in it is not dense")
            tensor_bytes += value.nbytes
            if max(value.untyped_storage().nbytes(), tensor_bytes) > num_bytes:
                raise InputError(f"{path} is damaged: a tensor in it is larger than the file, or tensors overlap")
        elif isinstance(value, (dict, list, tuple)):
            waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
