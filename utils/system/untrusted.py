"""Reading untrusted PyTorch files: none can run code, and each size is checked before memory is taken for it."""

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.system.errors import InputError, is_out_of_memory, one_line
from utils.system.reading import MAX_FILE_BYTES, read_bytes

MAX_OPCODES = 1 << 19  # of a pickle: a state dict has about 20 a tensor
MAX_NESTING = 200  # of containers
ZIP_DIRECTORY = 0x10  # of a directory: PyTorch's reader does not read it, and returns uninitialised memory
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how PyTorch before 1.6 starts a file


class _Ignored:
    """Takes the place of a path or a numpy scalar among a checkpoint's options: accepts anything, does nothing."""

    def __new__(cls, *_: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    __setstate__ = __init__


_IGNORED_NAMES = [f"pathlib{module}.{system}Path" for module in ("", "._local") for system in ("Posix", "Windows")]
_IGNORED_NAMES += [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")] + ["numpy.dtype", "_codecs.encode"]
# The part of what torch.load allows that tensors, state dicts and options need: not, say, a bytearray of any size
_ALLOWED_NAMES = re.compile(
    "|".join(map(re.escape, _IGNORED_NAMES))
    + r"|torch(\.cuda)?\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|device|bool|b?float\d+|u?int\d+)|collections\.(OrderedDict|Counter)|builtins\.(set|complex)"
    r"|argparse\.Namespace"
)


def load_untrusted(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Load what torch.save wrote to a file, on the CPU: tensors and plain containers only.

    Reads PyTorch's zip format (and verifies its checksums, as torch.load does not) and the format before PyTorch 1.6.

    Raises:
        InputError: the file is missing, damaged, no PyTorch file, or would run code.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes)
    try:
        if content.startswith(ZIP_MAGIC):
            _check_zip(content)
            _check_pickle(io.BytesIO(torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")))
        elif content.startswith(LEGACY_MAGIC):
            stream = io.BytesIO(content)
            for _ in ("magic number", "protocol", "system", "object", "names of the storages"):
                _check_pickle(stream)
        else:
            raise InputError("is damaged or is not a PyTorch file")
        ignored = [(_Ignored, name) for name in _IGNORED_NAMES]
        # s3prl's checkpoints hold their options in a Namespace; a damaged file also makes torch.load warn
        with torch.serialization.safe_globals([argparse.Namespace, *ignored]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _check_values(loaded, len(content))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged file makes zipfile, pickletools and torch.load raise nearly anything
        if is_out_of_memory(error) and content.startswith(ZIP_MAGIC):  # the other format may claim any size
            raise
        raise InputError(f"{path} is damaged: {one_line(error, 200)}") from error
    return loaded


def _check_pickle(stream: io.BytesIO) -> None:
    """Refuse a pickle before it is loaded: one that runs code (InputError), is too long, or nests too deeply.

    Follows the unpickler's stack, with the nesting depth of each value in its place. (Hashing a tuple, a key of a
    dict, recurses into each level: at a million levels the interpreter crashes.)
    """
    stack, marks, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name, takes = opcode.name, opcode.stack_before
        if name == "GLOBAL" and not _ALLOWED_NAMES.fullmatch(found := argument.replace(" ", ".")):
            raise InputError(f"would run code ({one_line(found, 80)})")
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
                raise ValueError(f"its pickle has over {MAX_NESTING} levels or {MAX_OPCODES} opcodes")
            stack[start:] = [depth] * len(opcode.stack_after)


def _check_zip(content: bytes) -> None:
    """Refuse a PyTorch zip file with compressed, duplicate or overlapping members, or a wrong checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        plain = all(m.compress_type == zipfile.ZIP_STORED and not m.external_attr & ZIP_DIRECTORY for m in members)
        unique = len({m.filename for m in members}) == len(members)  # else one hides another's checksum
        fits = sum(m.file_size for m in members) <= len(content)
        if not (plain and unique and fits and archive.testzip() is None):
            raise ValueError("its checksums or sizes do not agree")


def _check_values(loaded: Any, num_bytes: int) -> None:
    """Refuse tensors that are not plain numbers on the CPU, or that hold more, all together, than the file.

    A value counts once for each place that it is in: what contains itself nests too deeply, and each place of a
    tensor may become a copy.
    """
    waiting, places, tensor_bytes = [(loaded, 1)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        places += 1
        if depth > MAX_NESTING or places > MAX_OPCODES:
            raise ValueError(f"it has over {MAX_NESTING} levels or {MAX_OPCODES} values")
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
                raise ValueError("a tensor in it is not dense")
            tensor_bytes += value.nbytes
            if max(value.untyped_storage().nbytes(), tensor_bytes) > num_bytes:
                raise ValueError("a tensor in it is larger than the file, or tensors overlap")
        elif isinstance(value, (dict, list, tuple)):
            waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
