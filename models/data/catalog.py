"""The data sets that the command line knows by name."""

from __future__ import annotations

from collections.abc import Callable

from tapegrad.errors import OptionError
from tapegrad.models.data.dataset import Dataset, split
from tapegrad.models.data.mnist_files import mnist
from tapegrad.models.data.synthetic import moons, quadrants, xor
from tapegrad.models.data.uci_digits import digits

#: How to make each data set from a seed.
DATASETS: dict[str, Callable[[int], Dataset]] = {
    "xor": lambda seed: split(*xor(800, noise=0.1, seed=seed), name="xor", classes=("equal", "different"), seed=seed),
    "quadrants": lambda seed: split(*quadrants(500, seed=seed), name="quadrants", classes=("odd", "even"), seed=seed),
    "moons": lambda seed: split(*moons(500, seed=seed), name="moons", classes=("upper", "lower"), seed=seed),
    "digits": lambda seed: digits(seed),
    "mnist": lambda seed: mnist(),
}


def load(name: str, seed: int = 0) -> Dataset:
    """The data set of that name: xor, quadrants, moons, digits or mnist.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``.
    seed : int
        Seed of generated examples and of the split; MNIST has a split of its own.

    Returns
    -------
    Dataset

    Raises
    ------
    OptionError
        If there is no data set of that name.
    DataError
        If its files are missing or corrupt.

    Examples
    --------
    >>> from tapegrad.models.data import load
    >>> load("xor").train_x.shape
    (640, 2)
    """
    if name not in DATASETS:
        raise OptionError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](seed)
