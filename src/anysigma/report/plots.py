"""Curves as pictures: PNG for a folder, SVG for a page in the page's own colours."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: apart for all eyes, readable on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FEW = 8
INK = "#010203"  # stands for the page's text colour until the SVG is written


@dataclass(frozen=True)
class Curve:
    """Points (x, y), joined where `style` is "-" or "--", bare where it is "."; ":" and "-." are lines to
    read the others against, in the colour of the text. `error`: half the length of a bar."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    style: str = "-"


@dataclass(frozen=True)
class Plot:
    """Curves over two named axes, with a caption that says what is seen."""

    caption: str
    x: str
    y: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False


def drawn(plot: Plot) -> np.ndarray:
    """uint8 `[H, W, 3]`, dark on white."""
    figure = _figure(plot, "#222222")
    figure.set_facecolor("white")
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()


def svg(plot: Plot) -> str:
    """An <svg> element without a background, its text and axes in the page's text colour."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.caption}):
        figure = _figure(plot, INK)
        figure.set_size_inches(4.8, 3.4)  # so that its text is as large as the page's, on a phone too
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def literal(label: str) -> str:
    """As it is written: between two dollars matplotlib would read TeX."""
    return label.replace("$", r"\$")


def _figure(plot: Plot, ink: str) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=literal(plot.x), ylabel=literal(plot.y))
    for i, curve in enumerate(plot.curves):
        colour = ink if curve.style in (":", "-.") else COLOURS[i % len(COLOURS)]
        line = {"color": colour, "label": literal(curve.label), "markersize": 3}
        line |= {"ls": "", "marker": "."} if curve.style == "." else {"ls": curve.style}
        line |= {"marker": "."} if len(curve.x) <= 30 else {}
        axes.errorbar(curve.x, curve.y, yerr=curve.error, capsize=2, **line)
    if plot.log_x:
        axes.set_xscale("log")
        few = sorted({x for curve in plot.curves for x in curve.x if x > 0})
        if len(few) <= FEW:  # the steps that were tried, not powers of ten
            axes.set_xticks(few, [f"{x:g}" for x in few])
            axes.set_xticks([], minor=True)
    if plot.log_y:
        axes.set_yscale("log")
    axes.tick_params(colors=ink, which="both")
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(ink)
    for name, spine in axes.spines.items():
        spine.set_color(ink)
        spine.set_visible(name in ("left", "bottom"))
    axes.grid(alpha=0.2, color=ink)
    if len(plot.curves) > 1:
        axes.legend(frameon=False, labelcolor=ink)
    return figure
