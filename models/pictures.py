"""Pictures of graphs: what a function computes, with the names that its Tensors have."""

from __future__ import annotations

from tapegrad.ir.graph import Graph, Node, type_string
from tapegrad.models.svg import graph_picture


def draw_graph(graph: Graph, title: str = "", downwards: bool = True) -> str:
    """A traced graph as a picture, inputs first.

    Parameters
    ----------
    graph : Graph
        From ``tg.trace``.
    title : str
        What stands above the picture.
    downwards : bool
        Whether it flows down the page, or else to the right.

    Returns
    -------
    str
        An SVG document; each box shows the name of a Tensor, or else its operation, and its dtype and shape.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models.pictures import draw_graph
    >>> w = tg.Tensor(2.0, requires_grad=True, name="w")
    >>> picture = draw_graph(tg.trace(lambda x: tg.tanh(w * x), tg.Tensor(1.0)))
    >>> [label in picture for label in (">w<", ">x<", ">multiply<", ">tanh<")]
    [True, True, True, True]
    """
    numbers = {node: str(number) for number, node in enumerate(graph.nodes())}
    labels = {number: _label(graph, node) for node, number in numbers.items()}
    edges = [(numbers[source], number) for node, number in numbers.items() for source in node.inputs]
    return graph_picture(labels, edges, title, downwards)


def _label(graph: Graph, node: Node) -> list[str]:
    """The lines in a node's box."""
    name = graph.names.get(node)
    operation = f"{node.params['value']:g}" if node.is_constant else node.primitive
    kind = type_string(node.shape, node.dtype)
    if node.primitive == "input":
        return [name or "input", kind]
    return [name, operation, kind] if name else [operation, kind]
