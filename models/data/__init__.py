"""Data sets as plain NumPy arrays, and the loader that deals them out in batches."""

from __future__ import annotations

from tapegrad.models.data.catalog import DATASETS, load
from tapegrad.models.data.dataset import Dataset, split
from tapegrad.models.data.idx import read_idx
from tapegrad.models.data.loader import DataLoader
from tapegrad.models.data.mnist_files import mnist
from tapegrad.models.data.synthetic import classification, moons, quadrants, regression, xor
from tapegrad.models.data.uci_digits import digits

__all__ = [
    "DATASETS",
    "DataLoader",
    "Dataset",
    "classification",
    "digits",
    "load",
    "mnist",
    "moons",
    "quadrants",
    "read_idx",
    "regression",
    "split",
    "xor",
]
