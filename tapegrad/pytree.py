"""Nested lists, tuples and dictionaries as flat lists of leaves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

#: The shape of a nest: a hashable description that `unflatten` reads.
Structure = Hashable


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of a nest in order, and its structure.

    Lists, tuples, named tuples and dictionaries are nests (a dictionary's leaves come in the order of its keys as
    written); everything else, None too, is a leaf.

    Examples
    --------
    >>> leaves, structure = flatten({"a": 1, "b": (2, 3)})
    >>> leaves
    [1, 2, 3]
    >>> unflatten(structure, [10, 20, 30])
    {'a': 10, 'b': (20, 30)}
    """
    leaves: list[Any] = []
    return leaves, _describe(tree, leaves)


def _describe(tree: Any, leaves: list[Any]) -> Structure:
    kind = type(tree)
    if kind is dict:
        return ("dict", tuple(tree), tuple(_describe(item, leaves) for item in tree.values()))
    if kind is list or kind is tuple or (isinstance(tree, tuple) and hasattr(kind, "_fields")):
        return (kind, tuple([_describe(item, leaves) for item in tree]))
    leaves.append(tree)
    return None


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The nest with the given structure and leaves."""
    remaining = iter(leaves)
    return _build(structure, remaining)


def _build(structure: Any, leaves: Any) -> Any:
    if structure is None:
        return next(leaves)
    if structure[0] == "dict":
        return {key: _build(item, leaves) for key, item in zip(structure[1], structure[2], strict=True)}
    kind, items = structure
    built = [_build(item, leaves) for item in items]
    if kind is list:
        return built
    return tuple(built) if kind is tuple else kind(*built)
