"""Products of vectors and matrices."""

from __future__ import annotations

from tapegrad.errors import ShapeError
from tapegrad.ir import sizes
from tapegrad.operators import matmul
from tapegrad.precision import precision_of
from tapegrad.primitives import shape_text
from tapegrad.recording import TensorLike, promote, record
from tapegrad.tensor import Tensor

__all__ = ["dot", "matmul", "outer"]


def dot(a: TensorLike, b: TensorLike) -> Tensor:
    """The product by NumPy's rule for ``dot``: the last axis of ``a`` meets the last but one of ``b``.

    Parameters
    ----------
    a, b : array_like
        Scalars multiply; vectors of shape ``(k,)`` give their inner product; otherwise shapes ``(..., k)`` and ``(k,)``
        or ``(..., k, n)``.

    Returns
    -------
    Tensor
        All axes of ``a`` and ``b`` but those that meet. Leading axes do not broadcast, unlike in `matmul`.

    Raises
    ------
    ShapeError
        Where the sizes that meet differ.
    DTypeError
        Where both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.dot([1.0, 2.0], [3.0, 4.0]).item()
    11.0
    """
    first, second = promote(a, b)
    if not first.ndim or not second.ndim:
        return record("multiply", (first, second))
    if first.ndim <= 2 and second.ndim <= 2:
        return matmul(first, second)
    left, right = first._entry.shape, second._entry.shape
    meeting = right[-2] if len(right) > 1 else right[0]
    if sizes.unify(left[-1], meeting) is None:
        raise ShapeError(
            f"dot: {shape_text(left)} and {shape_text(right)}: the sizes {left[-1]} and {meeting} must be equal"
        )
    rows = record("reshape", (first,), shape=(sizes.product(left[:-1]), left[-1]))
    if len(right) > 1:
        order = (len(right) - 2, *range(len(right) - 2), len(right) - 1)
        second = record("transpose", (second,), axes=order)
    rest = right[:-2] + right[-1:] if len(right) > 1 else ()
    columns = record("reshape", (second,), shape=(meeting, sizes.product(rest)))
    product = record("matmul", (rows, columns), transpose_a=False, transpose_b=False, **precision_of(rows.dtype))
    return record("reshape", (product,), shape=left[:-1] + rest)


def outer(a: TensorLike, b: TensorLike) -> Tensor:
    """The product of every element of ``a`` with every element of ``b``.

    Parameters
    ----------
    a, b : array_like
        Any shapes; flattened.

    Returns
    -------
    Tensor
        Shape ``(m, n)``, the numbers of elements.

    Raises
    ------
    DTypeError
        Where both are bool.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.outer([1.0, 2.0], [3.0, 4.0]).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """
    first, second = promote(a, b)
    column = record("reshape", (first,), shape=(sizes.product(first._entry.shape), 1))
    row = record("reshape", (second,), shape=(1, sizes.product(second._entry.shape)))
    return record("multiply", (column, row))
