"""Pictures: valid documents, everything inside the paper, no boxes that overlap, and clear words for wrong input."""

from __future__ import annotations

import base64
import itertools
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tapegrad.errors import OptionError, ShapeError
from tapegrad.models import drawing
from tapegrad.models.layered import layout
from tapegrad.models.svg import decision_boundary, graph_picture, line_chart, write_svg

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture: str) -> ElementTree.Element:
    """The document, which must be well-formed, free of NaN, and keep its lines on the paper."""
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg" and root.findtext(f"{SVG}title")
    assert "nan" not in re.findall(r'"[^"]*"', picture) and "inf" not in re.findall(r"[ML ]inf", picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for line in root.findall(f"{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", line.attrib["d"])]
        assert all(0 <= x <= width for x in numbers[::2]) and all(0 <= y <= height for y in numbers[1::2])
    return root


def curves(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of every curve."""
    found = [line for line in root.findall(f"{SVG}path") if line.get("stroke-width") == "2"]
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line.attrib["d"])] for line in found
    ]


def words(root: ElementTree.Element) -> list[str]:
    """Every text of a picture."""
    return [str(item.text) for item in root.iter(f"{SVG}text")]


# Curves


def test_a_chart_names_its_curves_and_axes() -> None:
    root = parsed(line_chart({"train": [2, 1, 0.5], "test": [2, 1.5, 1]}, "Loss", x_label="epoch", y_label="nats"))
    assert {"Loss", "train", "test", "epoch", "nats", "0.5", "1", "2", "3"} <= set(words(root))
    assert len(curves(root)) == 2


def test_a_curve_goes_where_its_values_are() -> None:
    ((first, second, third),) = curves(parsed(line_chart({"loss": [3.0, 2.0, 1.0]})))
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.02)
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.02)
    assert first[1] < second[1] < third[1]


def test_a_logarithmic_scale_makes_a_decay_straight() -> None:
    ((first, second, third),) = curves(parsed(line_chart({"loss": [1.0, 0.1, 0.01]}, log=True)))
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.02)


def test_pairs_give_their_own_places() -> None:
    ((first, second, third),) = curves(parsed(line_chart({"loss": [[0, 1], [30, 2], [40, 3]]})))
    assert second[0] - first[0] == pytest.approx(3 * (third[0] - second[0]), abs=0.05)


def test_what_is_not_finite_leaves_a_gap() -> None:
    root = parsed(line_chart({"loss": [1, 2, np.nan, 3, 4, np.inf, 5]}))
    assert [len(curve) for curve in curves(root)] == [2, 2]
    assert len(root.findall(f"{SVG}circle")) == 1
    logarithmic = parsed(line_chart({"loss": [1, 2, 0, 3, 4, -1, 5, 6]}, log=True))
    assert [len(curve) for curve in curves(logarithmic)] == [2, 2, 2]


@pytest.mark.parametrize(
    "values", [[], [1.0], [0.0], [5.0, 5.0], [-1e30, 1e30], [1e-30, 2e-30], [np.nan], [1e300, 1e-300], [1, 1 + 1e-12]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(values: list[float], log: bool) -> None:
    parsed(line_chart({"loss": values}, log=log))


def test_no_curves_and_many_curves_can_be_drawn() -> None:
    assert curves(parsed(line_chart({}, "Nothing yet"))) == []
    many = {f"a rather long name for curve {index}": [index, index + 1] for index in range(12)}
    root = parsed(line_chart(many, "Many"))
    assert len(curves(root)) == 12
    strokes = {(line.get("stroke"), line.get("stroke-dasharray")) for line in root.findall(f"{SVG}path")}
    assert len(strokes - {(drawing.GRID, None), (drawing.FRAME, None)}) == 7


def test_many_points_are_thinned_and_peaks_stay() -> None:
    values = np.ones(100_000)
    values[[0, 54_321]] = 2.0, 9.0
    picture = line_chart({"loss": values})
    (curve,) = curves(parsed(picture))
    assert len(curve) <= 1000 and len(picture) < 30_000
    assert min(y for _, y in curve) < curve[0][1] - 100


def test_names_may_hold_any_characters() -> None:
    root = parsed(line_chart({'a < b & "c"': [1, 2]}, "<svg> & more"))
    assert 'a < b & "c"' in words(root) and "<svg> & more" in words(root)


def test_values_must_be_a_vector_or_pairs() -> None:
    with pytest.raises(ShapeError, match=r"'loss' has shape \(2, 3\)"):
        line_chart({"loss": np.zeros((2, 3))})


@pytest.mark.parametrize(
    "low, high, most, expected",
    [
        (0.0, 1.0, 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.0, 40.0, 8, [5, 10, 15, 20, 25, 30, 35, 40]),
        (-1.6, 1.6, 7, [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, expected: list[float]) -> None:
    assert drawing.linear_ticks(low, high, most) == pytest.approx(expected)


def test_logarithmic_ticks_thin_out_with_the_range() -> None:
    assert drawing.log_ticks(0.01, 1.0, 8) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    assert drawing.log_ticks(0.001, 1.0, 8) == pytest.approx([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    assert len(drawing.log_ticks(1e-30, 1.0, 6)) <= 6


@pytest.mark.parametrize(
    "value, label",
    [(0.0, "0"), (0.25, "0.25"), (0.1 + 0.2, "0.3"), (5000, "5000"), (20000, "20,000"), (2e6, "2e6"), (3e-5, "3e-5")],
)
def test_tick_labels_are_short(value: float, label: str) -> None:
    assert drawing.tick_label(value, [0, value] if value else [0, 1]) == label


# Decision boundaries


def pixels(root: ElementTree.Element) -> np.ndarray:
    """The image in a picture, decoded: rows from the top, columns, colours."""
    (image,) = root.findall(f"{SVG}image")
    png = base64.b64decode(image.attrib["href"].split(",")[1])
    columns, rows = struct.unpack(">II", png[16:24])
    length = struct.unpack(">I", png[33:37])[0]
    lines = np.frombuffer(zlib.decompress(png[41 : 41 + length]), np.uint8).reshape(rows, 1 + 3 * columns)
    return lines[:, 1:].reshape(rows, columns, 3)


def test_the_image_shows_probabilities_with_the_first_row_below() -> None:
    root = parsed(decision_boundary([[1.0, 0.5], [0.0, 0.0]], [[0, 0], [1, 1]], [0, 1]))
    shown = pixels(root).astype(int)
    top_left, bottom_left = shown[0, 0], shown[1, 0]
    assert top_left[2] > top_left[0] and bottom_left[0] > bottom_left[2]
    assert np.abs(shown[1, 1] - (top_left + bottom_left) / 2).max() <= 1


def test_the_boundary_lies_where_the_classes_are_even() -> None:
    rows, columns = np.mgrid[0:1:21j, 0:1:21j]
    picture = decision_boundary(columns, [[0, 0], [1, 1]], [0, 1], extent=(0, 1, 0, 1))
    root = parsed(picture)
    lines = [line.attrib["d"] for line in root.findall(f"{SVG}path") if line.get("stroke-width") == "1.4"]
    places = {float(x) for line in lines for x in re.findall(r"[ML](-?[\d.]+) ", line)}
    image = root.find(f"{SVG}image")
    assert image is not None
    middle = float(image.attrib["x"]) + float(image.attrib["width"]) / 2
    assert lines and all(abs(x - middle) < 0.1 for x in places)


def test_each_label_has_a_colour_and_a_shape() -> None:
    probabilities = np.full((5, 5, 4), 0.25)
    points = [[0, 0], [0, 1], [1, 0], [1, 1]]
    root = parsed(decision_boundary(probabilities, points, [0, 1, 2, 3], classes=("a", "b", "c", "d"), title="Four"))
    markers = [item for item in root if item.tag in (f"{SVG}circle", f"{SVG}polygon")]
    assert len({item.get("fill") for item in markers}) == 4
    assert len({len(item.get("points", "").split()) for item in markers}) == 3
    assert {"a", "b", "c", "d", "Four"} <= set(words(root))


def test_points_outside_the_extent_are_left_out() -> None:
    root = parsed(decision_boundary(np.zeros((2, 2)), [[5, 5], [0.5, 0.5]], [0, 0], extent=(0, 1, 0, 1)))
    assert len(root.findall(f"{SVG}circle")) == 1


def test_a_boundary_needs_no_points() -> None:
    parsed(decision_boundary(np.zeros((2, 2)), np.zeros((0, 2)), np.zeros(0, int)))


def test_unknown_probabilities_are_drawn_as_undecided() -> None:
    unknown, even = (pixels(parsed(decision_boundary([[1, 0], [p, 1]], [[0, 0]], [0]))) for p in (np.nan, 0.5))
    assert np.array_equal(unknown, even)


@pytest.mark.parametrize(
    "probabilities, points, labels, options, error, says",
    [
        (np.zeros(4), [[0, 0]], [0], {}, ShapeError, r"probabilities of shape \(4,\)"),
        (np.zeros((1, 4)), [[0, 0]], [0], {}, ShapeError, "no grid of at least 2 x 2"),
        (np.zeros((2, 2)), [[0, 0, 0]], [0], {}, ShapeError, r"points \(1, 3\) and labels \(1,\)"),
        (np.zeros((2, 2)), [[0, 0]], [0, 1], {}, ShapeError, r"labels \(2,\)"),
        (np.zeros((2, 2)), [[0, 0]], [2], {}, OptionError, "labels 2 to 2, but probabilities of 2"),
        (np.zeros((2, 2)), [[0, 0]], [0], {"classes": ("a",)}, OptionError, "1 names for 2 labels"),
    ],
)
def test_wrong_input_of_a_boundary_is_named(
    probabilities: np.ndarray, points: list, labels: list, options: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        decision_boundary(probabilities, points, labels, **options)


# Graphs


def boxes(root: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node's box."""
    found = []
    for box in root.findall(f"{SVG}rect"):
        if "rx" in box.attrib:
            x, y, width, height = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def random_graph(seed: int, size: int) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Nodes with labels of various sizes, and edges from earlier to later ones."""
    generator = np.random.default_rng(seed)
    nodes = {f"n{i}": ["a label" * int(generator.integers(0, 4))] * int(generator.integers(0, 4)) for i in range(size)}
    pairs = itertools.combinations(nodes, 2)
    return nodes, [pair for pair in pairs if generator.uniform() < 2 / size]


@pytest.mark.parametrize("downwards", [True, False])
@pytest.mark.parametrize("size", [1, 2, 10, 40])
def test_boxes_of_a_graph_do_not_overlap_and_stay_on_the_paper(size: int, downwards: bool) -> None:
    root = parsed(graph_picture(*random_graph(size, size), "A graph", downwards))
    found = boxes(root)
    assert len(found) == size
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for left, top, right, bottom in found:
        assert 0 < left < right < width and 34 < top < bottom < height
    for (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) in itertools.combinations(
        found, 2
    ):
        assert right < other_left or other_right < left or bottom < other_top or other_bottom < top


def test_a_graph_shows_every_label_and_edge() -> None:
    nodes = {"x": ["x", "2.0"], "w": ["w", "-3.0"], "m": ["*", "-6.0"], "t": ["tanh", "-1.0"]}
    root = parsed(graph_picture(nodes, [("x", "m"), ("w", "m"), ("m", "t"), ("x", "t"), ("x", "m")]))
    assert words(root) == [line for lines in nodes.values() for line in lines]
    assert len([line for line in root.findall(f"{SVG}path") if line.get("marker-end")]) == 4


def test_layers_follow_the_longest_path_and_sources_stand_by_their_first_user() -> None:
    edges = [("x", "a"), ("a", "b"), ("b", "c"), ("x", "c"), ("late", "c")]
    plan = layout({name: 10.0 for name in ("x", "a", "b", "c", "late")}, edges, gap=5, bend_width=1)
    assert [sorted(layer) for layer in plan.layers] == [["x"], ["a"], ["b", "late"], ["c"]]
    assert len(plan.bends["x", "c"]) == 2 and plan.bends["a", "b"] == []


def test_crossings_that_can_be_avoided_are() -> None:
    names = [f"{side}{index}" for side in "ab" for index in range(6)]
    edges = [(f"a{index}", f"b{5 - index}") for index in range(6)]
    plan = layout(dict.fromkeys(names, 10.0), edges, gap=5, bend_width=1)
    assert [f"b{5 - int(name[1])}" for name in plan.layers[0]] == plan.layers[1]
    assert all(plan.centres[source] == pytest.approx(plan.centres[target]) for source, target in edges)


def test_an_empty_graph_is_an_empty_picture() -> None:
    assert boxes(parsed(graph_picture({}, []))) == []


def test_a_graph_has_no_circles_and_no_strangers() -> None:
    with pytest.raises(OptionError, match="edges in a circle: a <- b <- a|edges in a circle: b <- a <- b"):
        graph_picture({"a": [], "b": []}, [("a", "b"), ("b", "a")])
    with pytest.raises(OptionError, match="'a' -> 'z' names no node 'z'"):
        graph_picture({"a": []}, [("a", "z")])


def test_a_picture_is_written_to_a_file(tmp_path: Path) -> None:
    picture = line_chart({"loss": [1, 2]}, "Größe")
    assert write_svg(tmp_path / "new" / "loss.svg", picture).read_text(encoding="utf-8") == picture
