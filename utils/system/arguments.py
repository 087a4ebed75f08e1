"""Types and options of the scripts' command lines."""

import argparse
import contextlib
import math
from collections.abc import Callable

MAX_SIZE = 1 << 16  # of a layer or a frame: three such recurrent layers take 300 GB
MAX_COUNT = 1 << 10  # of layers, parts of a batch or processes
MAX_INTEGER = (1 << 63) - 1


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines, and add the default of an option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, "", argparse.SUPPRESS) or isinstance(action.default, bool):
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {default})".replace("%", "%%") if "%" not in text else text


def _integer(least: int, most: int = MAX_INTEGER) -> Callable[[str], int]:
    limits = f"of {least} or more" if most == MAX_INTEGER else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= (number := int(text[:20])) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number {limits}")
        return number

    return parse


positive = _integer(1)
natural = _integer(0)
size = _integer(1, MAX_SIZE)
positive_count = _integer(1, MAX_COUNT)
count = _integer(0, MAX_COUNT)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number above 0")


def nonnegative_float(text: str) -> float:
    """A finite number of 0 or more."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number of 0 or more")


def fraction(text: str) -> float:
    """A number above 0 and up to 1."""
    if (number := positive_float(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is above 1")
    return number


def add_residual_option(parser: argparse.ArgumentParser) -> None:
    """Add --residual: the weights of a checkpoint do not show it."""
    text = "Whether the model has residual connections, whatever its configuration or file name says."
    parser.add_argument("--residual", action=argparse.BooleanOptionalAction, default=None, help=text)
