"""Pictures without a library, as SVG text: curves of a training, decision boundaries, and graphs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegrad.errors import OptionError, ShapeError
from tapegrad.models import drawing
from tapegrad.models.drawing import Scale, element, marker, path, text
from tapegrad.models.files import write_atomic
from tapegrad.models.layered import Layout, layout

MOST_POINTS = 1000
# Beyond this a value counts as infinite: the range of an axis must itself be a number.
LARGEST = 1e150
Floats = NDArray[np.float64]


def write_svg(path: str | os.PathLike[str], text: str) -> Path:
    """Write a picture to a file, whole or not at all, and return the path.

    Examples
    --------
    >>> import tempfile
    >>> from tapegrad.models.svg import line_chart, write_svg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_svg(f"{folder}/loss.svg", line_chart({"loss": [3, 2, 1]})).stat().st_size > 1000
    True
    """
    return write_atomic(path, text.encode())


# Curves


def line_chart(
    series: Mapping[str, ArrayLike], title: str = "", x_label: str = "epoch", y_label: str = "", log: bool = False
) -> str:
    """Curves over a common axis, such as the loss and the accuracy of a training.

    Parameters
    ----------
    series : mapping of str to array_like
        For each name the values at 1, 2, 3, ..., or an array of shape (points, 2) with x and y. NaN and infinite
        values, and on a logarithmic scale those that are not positive, leave a gap.
    title, x_label, y_label : str
        What stands above the picture and beside its axes.
    log : bool
        Whether the vertical scale is logarithmic.

    Returns
    -------
    str
        An SVG document.

    Raises
    ------
    ShapeError
        If the values of a name are neither a vector nor pairs.

    Examples
    --------
    >>> from tapegrad.models.svg import line_chart
    >>> picture = line_chart({"train": [2.3, 0.9, 0.4], "test": [2.2, 1.0, 0.6]}, "Loss", y_label="cross-entropy")
    >>> picture.startswith("<svg") and "cross-entropy" in picture
    True
    """
    curves = {name: _points(name, values, log) for name, values in series.items()}
    width, left, right = 720.0, 84.0, 24.0
    samples = [path([(0, 0), (22, 0)], **_stroke(index)) for index in range(len(curves))]
    keys, keys_height = drawing.legend(list(curves), left, width - right, 62 if title else 26, samples)
    top = (56 if title else 26) + keys_height
    height = top + 330 + 62
    finite = [points[np.isfinite(points).all(axis=1)] for points in curves.values()]
    known = np.concatenate([*finite, np.empty((0, 2))])
    horizontal = Scale(*_range(known[:, 0], False, margin=0.0), left, width - right)
    vertical = Scale(*_range(known[:, 1], log, margin=0.04), height - 62, top, log)
    parts = [text(left, 34, title, font_size=17, font_weight="bold")] if title else []
    parts += keys + drawing.axes(horizontal, vertical, x_label, y_label)
    for index, points in enumerate(curves.values()):
        for run in _runs(points):
            places = [(horizontal(x), vertical(y)) for x, y in _thinned(run).tolist()]
            parts.append(path(places, **_stroke(index)) if len(places) > 1 else _dot(index, *places[0]))
    return drawing.document(width, height, title or y_label or "curves", parts)


def _points(name: str, values: ArrayLike, log: bool) -> Floats:
    """Pairs of x and y, with NaN where nothing can be drawn."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = np.stack([np.arange(1.0, len(array) + 1), array], axis=1)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ShapeError(f"line_chart: {name!r} has shape {array.shape}; it must be (points,) or (points, 2)")
    drawable = (np.abs(array) < LARGEST).all(axis=1) & ((array[:, 1] > 1 / LARGEST) | (not log))
    return np.where(drawable[:, None], array, np.nan)


def _range(values: Floats, log: bool, margin: float) -> tuple[float, float]:
    """A range with a margin on both sides that is never empty."""
    if not len(values):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        room = max((high / low) ** margin, 1.05 if margin else 1.0)
        return (low / room, high * room) if high / low * room > 1.01 else (low / 2, high * 2)
    if low == high:
        room = abs(low) * 0.5 or 0.5
        return low - room, high + room
    room = (high - low) * margin
    # A quantity that is never negative gets no axis below zero.
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def _runs(points: Floats) -> list[Floats]:
    """The stretches between gaps."""
    gaps = np.flatnonzero(np.isnan(points[:, 0]))
    stretches = [part[~np.isnan(part[:, 0])] for part in np.split(points, gaps)]
    return [stretch for stretch in stretches if len(stretch)]


def _thinned(points: Floats) -> Floats:
    """At most ``MOST_POINTS`` of many points: the lowest and the highest of each stretch, so that peaks stay."""
    if len(points) <= MOST_POINTS:
        return points
    kept = {0, len(points) - 1}
    for part in np.array_split(np.arange(len(points)), MOST_POINTS // 2 - 1):
        kept |= {int(part[points[part, 1].argmin()]), int(part[points[part, 1].argmax()])}
    return points[sorted(kept)]


def _stroke(index: int) -> dict[str, str | float]:
    """How the curve of that number is drawn."""
    colour, dash = drawing.COLOURS[index % len(drawing.COLOURS)], drawing.DASHES[index % len(drawing.DASHES)]
    return {"stroke": colour, "stroke_width": 2, "stroke_dasharray": dash, "stroke_linecap": "round"}


def _dot(index: int, x: float, y: float) -> str:
    """A curve of one point."""
    return element("circle", cx=x, cy=y, r=3, fill=drawing.COLOURS[index % len(drawing.COLOURS)])


# Decision boundaries


def decision_boundary(
    probabilities: ArrayLike,
    points: ArrayLike,
    labels: ArrayLike,
    *,
    extent: tuple[float, float, float, float] | None = None,
    classes: Sequence[str] = (),
    title: str = "",
    x_label: str = "x₁",
    y_label: str = "x₂",
) -> str:
    """What a classifier of the plane says, with the points that it was asked about.

    Parameters
    ----------
    probabilities : array_like, shape (rows, columns) or (rows, columns, classes)
        The probability of label 1, or of each label, on a regular grid; the first row is the lowest.
        Where it is NaN, all labels count as equally probable.
    points : array_like, shape (n, 2)
        Points to draw.
    labels : array_like, shape (n,)
        Their integer labels.
    extent : (left, right, bottom, top), optional
        Where the grid's outermost values lie; by default where the outermost points do.
    classes : sequence of str
        Names of the labels, for the legend.
    title, x_label, y_label : str
        What stands above the picture and beside its axes.

    Returns
    -------
    str
        An SVG document. A line marks where the most probable label changes.

    Raises
    ------
    ShapeError
        If a shape is none of the above.
    OptionError
        If a label has no probability or no name.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models.svg import decision_boundary
    >>> rows, columns = np.mgrid[-1:1:20j, -1:1:20j]
    >>> picture = decision_boundary(1 / (1 + np.exp(-5 * columns)), [[-0.5, 0], [0.5, 0]], [0, 1])
    >>> picture.count("<image")
    1
    """
    grid, places, kinds = np.asarray(probabilities, np.float64), np.asarray(points, np.float64), np.asarray(labels)
    if grid.ndim == 2:
        grid = np.stack([1 - grid, grid], axis=2)
    if grid.ndim != 3 or min(grid.shape[:2]) < 2:
        raise ShapeError(f"decision_boundary: probabilities of shape {grid.shape} are no grid of at least 2 x 2")
    if places.ndim != 2 or places.shape[1] != 2 or kinds.shape != places.shape[:1]:
        raise ShapeError(f"decision_boundary: points {places.shape} and labels {kinds.shape} must be (n, 2) and (n,)")
    count = grid.shape[2]
    if kinds.size and not 0 <= kinds.min() <= kinds.max() < count:
        raise OptionError(f"decision_boundary: labels {kinds.min()} to {kinds.max()}, but probabilities of {count}")
    if classes and len(classes) != count:
        raise OptionError(f"decision_boundary: {len(classes)} names for {count} labels")
    names = list(classes) or [str(label) for label in range(count)]
    colours = [drawing.COLOURS[label % len(drawing.COLOURS)] for label in range(count)]
    grid = np.where(np.isfinite(grid), grid, 1 / count)
    x_low, x_high, y_low, y_high = extent if extent is not None else _extent(places)

    left, side, right = 84.0, 440.0, 24.0
    samples = [marker(label, 14, 0, 4.5, fill=colours[label]) for label in range(count)]
    keys, keys_height = drawing.legend(names, left, left + side, 62 if title else 26, samples)
    top = (56 if title else 26) + keys_height
    horizontal, vertical = Scale(x_low, x_high, left, left + side), Scale(y_low, y_high, top + side, top)
    parts = [text(left, 34, title, font_size=17, font_weight="bold")] if title else []
    parts += keys
    parts.append(drawing.raster(left, top, side, side, drawing.mix(colours, grid[::-1], towards_white=0.55)))
    for label in range(1 if count == 2 else count):
        others = np.delete(grid, label, axis=2).max(axis=2)
        for (x0, y0), (x1, y1) in _contour(grid[:, :, label] - others):
            ends = [(left + side * x0, top + side * (1 - y0)), (left + side * x1, top + side * (1 - y1))]
            parts.append(path(ends, stroke=drawing.INK, stroke_width=1.4, stroke_linecap="round"))
    for (x, y), label in zip(places.tolist(), kinds.tolist(), strict=True):
        if x_low <= x <= x_high and y_low <= y <= y_high:
            look: dict[str, str | float] = {"fill": colours[label], "stroke": drawing.PAPER, "stroke_width": 1}
            parts.append(marker(label, horizontal(x), vertical(y), 3.6, **look))
    parts += drawing.axes(horizontal, vertical, x_label, y_label, most=(7, 7), grid=False)
    return drawing.document(left + side + right, top + side + 62, title or "decision boundary", parts)


def _extent(points: Floats) -> tuple[float, float, float, float]:
    """The range of points on both axes."""
    if not len(points):
        return 0.0, 1.0, 0.0, 1.0
    return *_range(points[:, 0], False, 0.0), *_range(points[:, 1], False, 0.0)


def _contour(values: Floats) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Pieces of the line where a grid of values is zero, in the unit square, by marching triangles."""
    rows, columns = values.shape
    pieces = []
    changes = np.ones((rows - 1, columns - 1), dtype=bool)
    positive = values > 0
    corners = positive[:-1, :-1], positive[:-1, 1:], positive[1:, :-1], positive[1:, 1:]
    changes = ~(np.logical_and.reduce(corners) | ~np.logical_or.reduce(corners))
    for row, column in np.argwhere(changes).tolist():
        a, b, c, d = (row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)
        for triangle in ((a, b, c), (a, c, d)):
            ends = []
            for start, end in zip(triangle, (*triangle[1:], triangle[0]), strict=True):
                first, second = values[start], values[end]
                if (first > 0) != (second > 0):
                    part = first / (first - second)
                    y, x = (start[axis] + part * (end[axis] - start[axis]) for axis in (0, 1))
                    ends.append((x / (columns - 1), y / (rows - 1)))
            if len(ends) == 2:
                pieces.append((ends[0], ends[1]))
    return pieces


# Graphs

LINE_HEIGHT, BOX_MARGIN, NODE_GAP, LAYER_GAP, BORDER = 15.0, 10.0, 22.0, 44.0, 24.0
SOURCE_FILL, INNER_FILL, SINK_FILL = "#dbeaf7", "#f5f7fa", "#fde8d5"
SOURCE_EDGE, INNER_EDGE, SINK_EDGE = "#0072b2", "#7b8794", "#d55e00"


def graph_picture(
    nodes: Mapping[str, Sequence[str]], edges: Iterable[tuple[str, str]], title: str = "", downwards: bool = True
) -> str:
    """An acyclic graph in layers, sources first.

    Parameters
    ----------
    nodes : mapping of str to sequence of str
        For each node the lines of its label; the first is set in bold.
    edges : iterable of (source, target)
        Names of nodes; repeated ones count once.
    title : str
        What stands above the picture.
    downwards : bool
        Whether layers follow each other down the page, or else to the right.

    Returns
    -------
    str
        An SVG document. Sources are blue, nodes that nothing follows are orange.

    Raises
    ------
    OptionError
        If an edge names an unknown node, or the edges go in a circle.

    Examples
    --------
    >>> from tapegrad.models.svg import graph_picture
    >>> picture = graph_picture({"x": ["x", "2.0"], "y": ["tanh", "0.964"]}, [("x", "y")])
    >>> picture.count("<rect"), picture.count("<path")
    (3, 2)
    """
    edges = list(dict.fromkeys(edges))
    sizes = {name: _box_size(lines) for name, lines in nodes.items()}
    across, along = (0, 1) if downwards else (1, 0)
    plan = layout({name: size[across] for name, size in sizes.items()}, edges, NODE_GAP, 6.0)
    starts, depths = _layer_places(plan, {name: size[along] for name, size in sizes.items()})
    heading = 34.0 if title else 0.0
    outer = [
        (plan.centres[name] - size[across] / 2, plan.centres[name] + size[across] / 2) for name, size in sizes.items()
    ]
    bends = [bend for row in plan.bends.values() for bend in row]
    first = min([low for low, _ in outer] + bends, default=0.0)
    breadth = max([high for _, high in outer] + bends, default=0.0) - first
    length = starts[-1] + depths[-1] if starts else 0.0

    def place(centre: float, depth: float) -> tuple[float, float]:
        x, y = (centre - first, depth) if downwards else (depth, centre - first)
        return x + BORDER, y + BORDER + heading

    layer_of = {name: index for index, layer in enumerate(plan.layers) for name in layer}
    parts = [_arrow_head()]
    if title:
        parts.append(text(BORDER, 34, title, font_size=17, font_weight="bold", font_family=drawing.SANS))
    for source, target in edges:
        begin, end = layer_of[source], layer_of[target]
        stops = [(plan.centres[source], starts[begin] + (depths[begin] + sizes[source][along]) / 2)]
        for layer, bend in zip(range(begin + 1, end), plan.bends[source, target], strict=True):
            stops += [(bend, starts[layer]), (bend, starts[layer] + depths[layer])]
        stops.append((plan.centres[target], starts[end] + (depths[end] - sizes[target][along]) / 2 - 3))
        parts.append(_edge([place(*stop) for stop in stops], downwards))
    followed, following = {source for source, _ in edges}, {target for _, target in edges}
    for name, lines in nodes.items():
        middle = starts[layer_of[name]] + depths[layer_of[name]] / 2
        fill, stroke = INNER_FILL, INNER_EDGE
        if name not in following:
            fill, stroke = SOURCE_FILL, SOURCE_EDGE
        elif name not in followed:
            fill, stroke = SINK_FILL, SINK_EDGE
        parts += _box(place(plan.centres[name], middle), sizes[name], lines, fill, stroke)
    width, height = (breadth, length) if downwards else (length, breadth)
    width = max(width, len(title) * 17 * drawing.SANS_ADVANCE)
    return drawing.document(width + 2 * BORDER, height + 2 * BORDER + heading, title or "graph", parts, drawing.MONO)


def _box_size(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of a box around lines of text."""
    longest = max((len(line) for line in lines), default=0)
    return max(longest * 12 * drawing.MONO_ADVANCE + 2 * BOX_MARGIN, 40.0), len(lines) * LINE_HEIGHT + 2 * BOX_MARGIN


def _layer_places(plan: Layout, depth: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Where each layer begins, and how deep it is."""
    starts, depths, at = [], [], 0.0
    for layer in plan.layers:
        starts.append(at)
        depths.append(max(depth[name] for name in layer))
        at += depths[-1] + LAYER_GAP
    return starts, depths


def _arrow_head() -> str:
    """The marker at the end of every edge."""
    head = element("path", d="M0 0 L8 4 L0 8 L2 4 Z", fill=drawing.FAINT_INK)
    look: dict[str, str | float] = {"id": "arrow", "markerWidth": 8, "markerHeight": 8, "refX": 6, "refY": 4}
    return element("defs", element("marker", head, **look, orient="auto", markerUnits="userSpaceOnUse"))


def _edge(stops: Sequence[tuple[float, float]], downwards: bool) -> str:
    """A curve through stops that leaves each of them along the direction of the layers."""
    steps = [f"M{drawing.number(stops[0][0])} {drawing.number(stops[0][1])}"]
    for (x0, y0), (x1, y1) in zip(stops, stops[1:], strict=False):
        controls = (x0, (y0 + y1) / 2, x1, (y0 + y1) / 2) if downwards else ((x0 + x1) / 2, y0, (x0 + x1) / 2, y1)
        steps.append("C" + " ".join(drawing.number(value) for value in (*controls, x1, y1)))
    look: dict[str, str | float] = {"fill": "none", "stroke": drawing.FAINT_INK, "stroke_width": 1.3}
    return element("path", d=" ".join(steps), **look, marker_end="url(#arrow)")


def _box(
    centre: tuple[float, float], size: tuple[float, float], lines: Sequence[str], fill: str, stroke: str
) -> list[str]:
    """A rounded box with its lines, the first in bold."""
    x, y = centre
    width, height = size
    corner = {"x": x - width / 2, "y": y - height / 2, "width": width, "height": height, "rx": 6.0}
    parts = [element("rect", **corner, fill=fill, stroke=stroke, stroke_width=1.2)]
    first = y - (len(lines) - 1) * LINE_HEIGHT / 2 + 4
    for index, line in enumerate(lines):
        look: dict[str, str | float] = {} if index else {"font_weight": "bold"}
        parts.append(text(x, first + index * LINE_HEIGHT, line, text_anchor="middle", **look))
    return parts
