"""Pictures of a report as inline SVG; colours are variables of the page, so both themes read well.

Every function answers one `<svg>` string that needs no network, or None where nothing is to draw.
Figures are 400 units wide, so that their text stays legible on a phone.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from typing import Any

from compress.scripts.lib.report_data import ModelRow, Points, bytes_text, loss_text

WIDTH = 400.0
INK, MUTED, GRID = "#010101", "#010102", "#010103"
SERIES = [f"#0102{i:02x}" for i in range(8)]
COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(SERIES)
}
DASHES = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5))]
MAX_POINTS = 300


def loss_curves(
    curves: Mapping[str, Points], *, key: str, alt: str, ylabel: str = "nats/token"
) -> str | None:
    """One line a term over optimizer steps; a logarithmic scale where terms differ tenfold."""
    drawn = {name: thin(points) for name, points in curves.items() if points}
    if not drawn:
        return None
    with _figure(height=240, key=key, alt=alt) as (figure, finish):
        axes = figure.subplots()
        for i, (name, points) in enumerate(drawn.items()):
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, label=_short(name), color=SERIES[i % 8], linewidth=1.6,
                linestyle=DASHES[(i // 4) % 4], marker="o" if len(points) < 12 else None,
                markersize=3,
            )  # fmt: skip
        if len(drawn) > 1:
            _scale(axes, [v for points in drawn.values() for _, v in points])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(_short(ylabel))
        _plain(axes)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(drawn), 3),
            frameon=False, fontsize=9,
        )  # fmt: skip
    return finish()


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: means of equal stretches, so that no spike is picked by chance."""
    if len(points) <= limit:
        return points
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    stretches = [points[a:b] for a, b in pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in stretches
    ]


def loss_and_bytes(rows: Sequence[ModelRow], *, key: str, metric: str) -> str | None:
    """Two bars a model, from zero: how good it is, and how large."""
    known = [row for row in rows if row.loss is not None]
    if not known:
        return None
    said = "; ".join(f"{r.name}: {loss_text(r.loss)}, {bytes_text(r.bytes)}" for r in known)
    height = 70 + 44 * len(known)
    with _figure(height=height, key=key, alt=f"{metric} and bytes. {said}") as (figure, finish):
        left, right = figure.subplots(1, 2, sharey=True)
        # the name stands above its bars: beside them it would leave no room on a phone
        for i, row in enumerate(known):
            left.text(0, i - 0.42, row.name, fontsize=9, color=INK, va="center")
        _bars(left, [r.loss for r in known], [loss_text(r.loss) for r in known], known)
        _bars(right, [r.bytes or 0.0 for r in known], [bytes_text(r.bytes) for r in known], known)
        left.set_title(_short(metric), loc="left")
        right.set_title("bytes", loc="left")
    return finish()


def _bars(axes: Any, values: list[Any], labels: list[str], rows: Sequence[ModelRow]) -> None:
    colours = [SERIES[2] if row.key == "compressed" else SERIES[0] for row in rows]
    bars = axes.barh(range(len(rows)), values, height=0.4, color=colours)
    axes.bar_label(bars, labels=labels, padding=4, fontsize=9, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.set_xlim(0, max(1e-12, *(v for v in values if v is not None)) * 1.45)
    axes.set_axis_off()


def pareto_plot(
    points: Sequence[tuple[float, float, bool, str]], *, key: str, xlabel: str
) -> str | None:
    """Loss over a cost: (cost, loss, on the front, name) a point; a line joins the front."""
    if not points:
        return None
    said = "; ".join(f"{name}: {loss_text(y)} at {x:.4g}" for x, y, _, name in points[:40])
    alt = f"Scatter plot of loss over {xlabel}. {said}"
    with _figure(height=280, key=f"pareto-{key}", alt=alt) as (figure, finish):
        axes = figure.subplots()
        front = sorted((x, y, name) for x, y, on, name in points if on)
        rest = [(x, y) for x, y, on, _ in points if not on]
        if rest:
            axes.scatter(*zip(*rest, strict=True), s=18, color=MUTED)
        axes.plot(
            [x for x, *_ in front], [y for _, y, _ in front], color=SERIES[2], marker="o",
            linewidth=1.4, markersize=5,
        )  # fmt: skip
        for x, y, name in front[:24]:
            axes.annotate(
                _short(name), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8,
                color=INK,
            )  # fmt: skip
        axes.set_xlabel(xlabel)
        axes.set_ylabel("loss")
        if key == "bytes":
            axes.xaxis.set_major_formatter(lambda value, _: bytes_text(value))
        _plain(axes)
    return finish()


def standalone(svg: str, *, dark: bool = False) -> str:
    """The same picture as a file of its own: colours and background in place of the page's."""
    from compress.scripts.lib.report_template import palette

    for name, colour in palette(dark=dark).items():
        svg = svg.replace(f"var(--{name})", colour)
    paper = palette(dark=dark)["card"]
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    look = f'style="background:{paper};font-family:system-ui,sans-serif" '
    return svg.replace("<svg ", head + look, 1)


def heat_map(
    cells: Mapping[tuple[str, str], float], *, key: str, alt: str, title: str
) -> str | None:
    """Layers down, kinds of projection across; figures in the cells where they are few."""
    if not cells:
        return None
    import numpy as np

    rows, columns = (list(dict.fromkeys(k[i] for k in cells)) for i in (0, 1))
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in cells.items():
        grid[rows.index(row), columns.index(column)] = value
    slanted = 4 * max(len(column) for column in columns)
    height = 60 + slanted + min(max(22 * len(rows), 60), 460)
    with _figure(height=height, key=key, alt=alt) as (figure, finish):
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(grid), cmap="cividis", rasterized=grid.size > 600,
            edgecolors="none",
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_title(title, loc="left")
        axes.set_ylabel("layer")
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha="right")
        every = -(-len(rows) // 24)
        axes.set_yticks(np.arange(0, len(rows), every) + 0.5, rows[::every])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if grid.size <= 120 and len(columns) <= 10:
            _write_cells(axes, grid, mesh)
        else:
            figure.colorbar(mesh, ax=axes, pad=0.02).outline.set_visible(False)
    return finish()


def _write_cells(axes: Any, grid: Any, mesh: Any) -> None:
    for (i, j), value in ((ij, v) for ij, v in _enumerate(grid) if v == v):
        red, green, blue, _ = mesh.cmap(mesh.norm(value))
        light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
        axes.text(
            j + 0.5, i + 0.5, f"{value:.3g}", ha="center", va="center", fontsize=8,
            color="#111111" if light else "#f5f5f5",
        )  # fmt: skip


def _enumerate(grid: Any) -> Iterator[tuple[tuple[int, int], float]]:
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            yield (i, j), float(value)


def _scale(axes: Any, values: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        # matplotlib writes powers of ten as mathematics, which is plain text on this page
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _short(name: str, limit: int = 34) -> str:
    # a leading underscore would hide the line from the legend
    name = name.lstrip("_") or "(no name)"
    return name if len(name) <= limit else name[: limit - 1] + "…"


@contextmanager
def _figure(*, height: float, key: str, alt: str) -> Iterator[tuple[Any, Any]]:
    """A figure under the house style, and a function that turns it into an SVG string."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False, "font.size": 10,
        "font.family": "sans-serif", "axes.titlesize": 10, "axes.labelsize": 9, "text.color": INK,
        "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9,
        "ytick.labelsize": 9, "axes.edgecolor": GRID, "axes.titlecolor": INK,
        "figure.constrained_layout.use": True,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        yield figure, lambda: _inline(figure, key=key, alt=alt, style=style)


def _inline(figure: Any, *, key: str, alt: str, style: dict[str, Any]) -> str:
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.set_facecolor("none")
    buffer = io.StringIO()
    with rc_context(style):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=144)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, count=1, flags=re.DOTALL)
    # several figures share one page: their ids must differ
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda m: m[1] + f"{key}-", svg)
    svg = re.sub(r'style="[^"]*"', _themed, svg)
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="([^"]*)"', opening)
    label = escape(alt, quote=True)
    new = f'<svg class="plot" role="img" aria-label="{label}" viewBox="{box[1] if box else ""}">'
    return new + svg[len(opening) :]


def _themed(match: re.Match[str]) -> str:
    text = match[0]
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    return text
