"""Frames per second of a training step against sequence length and batch size, as a figure.

    python benchmarks/speed_plot.py --save docs/speed.png

The steps are those of train_step.py: this project, in bf16 where the CPU has such products, and PyTorch's layers over
padded batches. Lengths run from a quarter of the longest to all of it. The variants take turns.
"""

import argparse
from pathlib import Path

from common import interleaved_seconds, make_lengths, parse_arguments
from train_step import BF16, OURS, PADDED, TIME_SHIFT, make_step

from utils.rnn.products import has_bf16_products
from utils.system.figures import legend_beside, line_style, new_figure, save_figure

SEQ_LENS, BATCH_SIZES = (100, 200, 400, 800, 1600), (1, 4, 8, 16, 32, 64)
LABELS = {PADDED: "nn.{} padded"}


def main() -> None:
    args = parse_arguments(__doc__.splitlines()[0], 400, add_options)
    args.ragged = True
    figure = new_figure(10, 3.4)
    for axes, name, values in zip(
        figure.subplots(1, 2, sharey=True), ("seq_len", "batch_size"), (SEQ_LENS, BATCH_SIZES), strict=True
    ):
        speeds = measure(args, name, values)
        for number, (variant, curve) in enumerate(speeds.items()):
            label = LABELS.get(variant, variant).format(args.rnn_type.upper())
            axes.plot(values, curve, label=label, **line_style(number))
            print(f"{name} {values}, {label}: " + ", ".join(f"{speed:,.0f}" for speed in curve) + " frames/s")
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, map(str, values))
        fixed = f"batches of {args.batch_size}" if name == "seq_len" else f"{args.seq_len} frames at most"
        axes.set_xlabel(f"{'frames of the longest utterance' if name == 'seq_len' else 'batch size'} ({fixed})")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("true frames per second")
    figure.axes[0].set_ylim(bottom=0)  # of both
    legend_beside(figure.axes[1])
    save_figure(figure, args.save)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--save", type=Path, required=True, metavar="FILE", help="Write the figure here.")


def measure(args: argparse.Namespace, name: str, values: tuple[int, ...]) -> dict[str, list[float]]:
    """True frames per second of each variant, for each value of an option."""
    variants = (OURS, BF16, PADDED) if has_bf16_products() else (OURS, PADDED)
    speeds = {variant: [] for variant in variants}
    for value in values:
        these = argparse.Namespace(**vars(args) | {name: value})
        frames = int((make_lengths(these, these.seq_len) - TIME_SHIFT).sum())
        seconds = interleaved_seconds({v: make_step(v, these, these.seq_len) for v in variants}, args.repeats)
        for variant in variants:
            speeds[variant].append(frames / seconds[variant])
    return speeds


if __name__ == "__main__":
    main()
