"""What the scripts' command lines share."""

import argparse
import contextlib
import math

MAX_SIZE = 1 << 16  # of a layer or a frame: three such recurrent layers take 300 GB
MAX_INTEGER = (1 << 63) - 1
MAX_COUNT = 1 << 10  # of layers, parts of a batch or processes


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines, and tells an option's default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, "", argparse.SUPPRESS) or isinstance(action.default, bool):
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {default})".replace("%", "%%") if "%" not in text else text


def positive(text: str) -> int:
    """An integer of 1 or more."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """An integer of 0 or more."""
    return _at_least(0, text)


def size(text: str) -> int:
    """The size of a layer or a frame."""
    return _at_least(1, text, MAX_SIZE)


def positive_count(text: str) -> int:
    """A number of layers or parts."""
    return _at_least(1, text, MAX_COUNT)


def count(text: str) -> int:
    """A number of layers or processes, perhaps none."""
    return _at_least(0, text, MAX_COUNT)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number above 0")


def fraction(text: str) -> float:
    """A number above 0 and up to 1."""
    number = positive_float(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is above 1")
    return number


def _at_least(least: int, text: str, most: int = MAX_INTEGER) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= (number := int(text[:20])) <= most:
        limits = f"of {least} or more" if most == MAX_INTEGER else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number {limits}")
    return number


def add_residual_option(parser: argparse.ArgumentParser) -> None:
    """What the weights of a checkpoint do not show."""
    parser.add_argument("--residual", action=argparse.BooleanOptionalAction, default=None,
        help="Whether the model has residual connections, where no config.json or file name tells.")  # fmt: skip
