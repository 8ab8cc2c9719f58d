"""Small generated data sets: each function returns examples and labels, the same for the same seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegrad.errors import OptionError

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def xor(samples: int = 4, noise: float = 0.0, seed: int = 0) -> tuple[Floats, Labels]:
    """Exclusive or: the four corners of the unit square, in turn, each moved by uniform noise in ``[0, noise)``.

    Parameters
    ----------
    samples : int
        Number of rows; 4 without noise is the truth table itself.
    noise : float
        Upper end of the noise added to both inputs.
    seed : int
        Seed of the noise.

    Returns
    -------
    x : ndarray of float32, shape (samples, 2)
    y : ndarray of int64, shape (samples,)
        1 where exactly one input is on.

    Examples
    --------
    >>> from tapegrad.models.data import xor
    >>> x, y = xor()
    >>> x.tolist(), y.tolist()
    ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0])
    """
    _check_samples("xor", samples)
    if noise < 0:
        raise OptionError(f"xor: noise must not be negative, but is {noise}")
    corner = np.arange(samples) % 4
    on = np.stack([corner // 2, corner % 2], axis=1)
    x = on + np.random.default_rng(seed).uniform(0.0, noise, on.shape)
    return x.astype(np.float32), on[:, 0] ^ on[:, 1]


def quadrants(samples: int = 400, scale: float = 2.0, seed: int = 0) -> tuple[Floats, Labels]:
    """Points of the plane, labelled by the parity of their quadrant: 0 in the first and third, 1 in the others.

    Parameters
    ----------
    samples : int
        Number of rows.
    scale : float
        Standard deviation of both coordinates, which are normal around 0.
    seed : int
        Seed of the points.

    Returns
    -------
    x : ndarray of float32, shape (samples, 2)
    y : ndarray of int64, shape (samples,)

    Examples
    --------
    >>> from tapegrad.models.data import quadrants
    >>> x, y = quadrants(100)
    >>> bool((y == (x[:, 0] * x[:, 1] < 0)).all())
    True
    """
    _check_samples("quadrants", samples)
    x = np.random.default_rng(seed).normal(0.0, scale, (samples, 2)).astype(np.float32)
    positive = x > 0
    return x, (positive[:, 0] ^ positive[:, 1]).astype(np.int64)


def moons(samples: int = 400, noise: float = 0.1, seed: int = 0) -> tuple[Floats, Labels]:
    """Two half circles that reach into each other, one for each label.

    Parameters
    ----------
    samples : int
        Number of rows; they alternate between the two.
    noise : float
        Standard deviation of the noise added to both coordinates.
    seed : int
        Seed of places and noise.

    Returns
    -------
    x : ndarray of float32, shape (samples, 2)
    y : ndarray of int64, shape (samples,)

    Examples
    --------
    >>> from tapegrad.models.data import moons
    >>> x, y = moons(6)
    >>> x.shape, y.tolist()
    ((6, 2), [0, 1, 0, 1, 0, 1])
    """
    _check_samples("moons", samples)
    if noise < 0:
        raise OptionError(f"moons: noise must not be negative, but is {noise}")
    generator = np.random.default_rng(seed)
    y = np.arange(samples, dtype=np.int64) % 2
    angle = generator.uniform(0.0, math.pi, samples)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    x = np.where(y[:, None] == 0, upper, lower) + generator.normal(0.0, noise, (samples, 2))
    return x.astype(np.float32), y


def regression(
    samples: int = 400, features: int = 10, informative: int | None = None, noise: float = 0.1, seed: int = 0
) -> tuple[Floats, Floats]:
    """A linear function of some of the features, with normal noise.

    Parameters
    ----------
    samples, features : int
        Shape of the examples, which are standard normal.
    informative : int, optional
        How many features have a weight, uniform in [-1, 1); the others have none. All by default.
    noise : float
        Standard deviation of the noise added to the target.
    seed : int
        Seed of examples, weights and noise.

    Returns
    -------
    x : ndarray of float32, shape (samples, features)
    y : ndarray of float32, shape (samples,)

    Examples
    --------
    >>> from tapegrad.models.data import regression
    >>> x, y = regression(50, features=3)
    >>> x.shape, y.shape
    ((50, 3), (50,))
    """
    _check_samples("regression", samples)
    known = features if informative is None else informative
    if not 0 < known <= features:
        raise OptionError(f"regression: informative={informative} must lie between 1 and features={features}")
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, features))
    weights = np.zeros(features)
    weights[generator.permutation(features)[:known]] = generator.uniform(-1.0, 1.0, known)
    y = x @ weights + generator.normal(0.0, noise, samples)
    return x.astype(np.float32), y.astype(np.float32)


def classification(
    samples: int = 100,
    features: int = 4,
    informative: int = 2,
    redundant: int = 0,
    classes: int = 2,
    separation: float = 1.0,
    flip: float = 0.01,
    seed: int = 0,
) -> tuple[Floats, Labels]:
    """Normal clusters at corners of a cube, mixed into more features, with some labels drawn anew.

    Parameters
    ----------
    samples, features : int
        Shape of the examples.
    informative : int
        Dimensions of the cube; each class is one cluster around one of its ``2**informative`` corners.
    redundant : int
        Features that are random linear combinations of the informative ones; what is left over is noise.
    classes : int
        Number of labels; they are dealt out evenly.
    separation : float
        Half the side of the cube: larger is easier.
    flip : float
        The part of the labels that are drawn at random.
    seed : int
        Seed of everything.

    Returns
    -------
    x : ndarray of float32, shape (samples, features)
    y : ndarray of int64, shape (samples,)

    Raises
    ------
    OptionError
        If the features, the corners or a fraction do not add up.

    Examples
    --------
    >>> from tapegrad.models.data import classification
    >>> x, y = classification(10, features=6, informative=3, redundant=2, flip=0.0)
    >>> x.shape, sorted(y.tolist())
    ((10, 6), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """
    _check_samples("classification", samples)
    if informative < 1 or redundant < 0 or informative + redundant > features:
        raise OptionError(
            f"classification: informative={informative} and redundant={redundant} must fit into features={features}"
        )
    if not 2 <= classes <= 2**informative:
        raise OptionError(
            f"classification: classes={classes} must lie between 2 and the {2**informative} corners "
            f"that informative={informative} dimensions have"
        )
    if not 0.0 <= flip <= 1.0:
        raise OptionError(f"classification: flip must lie between 0 and 1, but is {flip}")
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(samples, dtype=np.int64) % classes)
    corners = generator.permutation(2**informative)[:classes]
    signs = 2.0 * ((corners[:, None] >> np.arange(informative)) & 1) - 1.0
    known = separation * signs[y] + generator.normal(size=(samples, informative))
    mixture = generator.uniform(-1.0, 1.0, (informative, redundant))
    noise = generator.normal(size=(samples, features - informative - redundant))
    x: NDArray[Any] = np.concatenate([known, known @ mixture, noise], axis=1)
    x = x[:, generator.permutation(features)]
    drawn = generator.uniform(size=samples) < flip
    y = np.where(drawn, generator.integers(0, classes, samples), y)
    return x.astype(np.float32), y


def _check_samples(name: str, samples: int) -> None:
    """Refuse an empty data set."""
    if samples < 1:
        raise OptionError(f"{name}: samples must be at least 1, but is {samples}")
