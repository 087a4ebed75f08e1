"""How figures look, and how they are saved: as a PNG to look at, and as a PDF to print.

Lines differ in colour, dashes and marker, so that they are told apart by the colour-blind, and in black and white.
Matplotlib is imported where a figure is made.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from utils.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import Container
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)))
MARKERS = "os^Dv<>"
REFERENCE_DASHES = ((0, (1, 1)), (0, (4, 2)), (0, (6, 2, 1, 2)), (0, (8, 3)), (0, (1, 3)))
DPI = 200
LEGEND_ROW = 0.16  # inches, of 8 points
PALETTE = 256  # colours of a PNG, which make it three times smaller

# What a line looks like, as matplotlib's keyword arguments
Style = dict[str, object]


def line_style(number: int) -> Style:
    """How the line of a number looks, beside others."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.5,
    }


def reference_style(number: int) -> Style:
    """How a line without points looks, which others are compared with."""
    return {"color": "0.35", "linestyle": REFERENCE_DASHES[number % len(REFERENCE_DASHES)], "linewidth": 1.1}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend_beside(axes: "Axes") -> None:
    """Put a legend to the right of the data; its entries stand in the order of the right ends of their lines.

    The figure becomes higher where one above the other such legends for all its axes would not fit.
    """

    def right_end(entry: tuple["Artist | Container", str]) -> float:
        line = entry[0][0] if isinstance(entry[0], tuple) else entry[0]  # of error bars the first part is the line
        return line.get_ydata()[-1]

    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=right_end, reverse=True)
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "borderaxespad": 0}
    axes.legend(*zip(*entries, strict=True), **place, frameon=False, fontsize=8, handlelength=3.2)
    least = len(axes.figure.axes) * (LEGEND_ROW * len(entries) + 0.5)
    axes.figure.set_figheight(max(axes.figure.get_figheight(), least))


def to_png(figure: "Figure", dpi: int = DPI) -> bytes:
    """A figure as a small PNG."""
    from PIL import Image

    image, small = io.BytesIO(), io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    Image.open(image).convert("RGB").quantize(PALETTE).save(small, "png", optimize=True, dpi=(dpi, dpi))
    return small.getvalue()


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, and the same name with .pdf; each is whole or absent."""
    from matplotlib import rc_context

    with atomic_write(path) as file:
        file.write(to_png(figure))
    with rc_context({"pdf.fonttype": 42}), atomic_write(path.with_suffix(".pdf")) as file:  # TrueType: text is text
        figure.savefig(file, format="pdf", dpi=DPI, metadata={"CreationDate": None})
