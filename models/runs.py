"""Training runs of the command line: options with defaults for each data set, and the folder that a run leaves.

A folder appears whole: it is prepared beside its place under another name and renamed at the end.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.errors import DataError, OptionError
from tapegrad.jit import Jitted
from tapegrad.models import svg
from tapegrad.models.data import DATASETS, Dataset, load
from tapegrad.models.losses import cross_entropy
from tapegrad.models.mlp import MLP
from tapegrad.models.optimizer import Optimizer
from tapegrad.models.optimizers import SGD, Adam, AdamW, RMSprop
from tapegrad.models.schedules import CosineAnnealingLR
from tapegrad.models.steps import training_step
from tapegrad.models.training import History, fit, predict
from tapegrad.models.weights import save_weights
from tapegrad.random import manual_seed
from tapegrad.runtime.devices import CPU, canonical

if TYPE_CHECKING:
    from tapegrad.explanation import Explanation

#: Optimizers by the names that the command line takes, and a learning rate where none is given (None: the data set's).
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float | None]] = {
    "sgd": (lambda params, lr: SGD(params, lr=lr, momentum=0.9), 0.05),
    "adam": (Adam, None),
    "adamw": (AdamW, None),
    "rmsprop": (RMSprop, None),
}

OPTIONS_FILE = "options.json"
#: Points along a side of the picture of the decision boundary.
GRID = 120


@dataclass(frozen=True)
class Options:
    """What `train` is asked to do.

    Attributes
    ----------
    dataset : str
        A key of `tapegrad.models.data.DATASETS`.
    hidden : tuple of int
        The widths of the hidden layers.
    activation, optimizer : str
    epochs, batch_size, seed : int
    lr : float
        At first; it falls along a cosine to 0.
    device : str
        Where it trains: ``"cpu"`` or ``"cuda"``.
    """

    dataset: str
    hidden: tuple[int, ...]
    activation: str = "relu"
    epochs: int = 60
    lr: float = 3e-3
    batch_size: int = 32
    optimizer: str = "adam"
    seed: int = 0
    device: str = CPU


#: What a data set is trained with where nothing else is asked for.
DEFAULTS: dict[str, Options] = {
    "xor": Options("xor", (16,), activation="tanh", epochs=60, lr=2e-2),
    "quadrants": Options("quadrants", (64, 64), epochs=80, lr=5e-3),
    "moons": Options("moons", (32, 32), activation="tanh", epochs=80, lr=1e-2),
    "digits": Options("digits", (256,), epochs=40, batch_size=16),
    "mnist": Options("mnist", (384,), epochs=8, lr=2e-3, batch_size=128),
}


@dataclass(frozen=True)
class Setup:
    """Everything that a run trains with, ready to go."""

    options: Options
    data: Dataset
    model: MLP
    optimizer: Optimizer
    schedule: CosineAnnealingLR
    step: Jitted

    def explain(self) -> Explanation:
        """Every stage of the step that trains."""
        batch = slice(0, self.options.batch_size)
        return self.step.explain(self.data.train_x[batch], self.data.train_y[batch], np.float64(self.options.lr))


def choose_options(dataset: str, **chosen: Any) -> Options:
    """The defaults of a data set with what was chosen instead; None means the default.

    Examples
    --------
    >>> from tapegrad.models.runs import choose_options
    >>> choose_options("digits", epochs=3, lr=None).epochs
    3
    """
    if dataset not in DEFAULTS:
        raise OptionError(f"no data set is called {dataset!r}; there are {', '.join(DATASETS)}")
    given = {name: value for name, value in chosen.items() if value is not None}
    options = replace(DEFAULTS[dataset], **given)
    if options.optimizer not in OPTIMIZERS:
        raise OptionError(f"no optimizer is called {options.optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    usual = OPTIMIZERS[options.optimizer][1]
    return replace(options, lr=usual) if "lr" not in given and usual is not None else options


def prepare(options: Options) -> Setup:
    """Load the data, and make model, optimizer, schedule and step."""
    data = load(options.dataset, options.seed)
    manual_seed(options.seed)
    model = MLP(data.features, options.hidden, len(data.classes), activation=options.activation).to(options.device)
    optimizer = OPTIMIZERS[options.optimizer][0](model.parameters(), lr=options.lr)
    batches = -(-len(data.train_x) // options.batch_size)
    schedule = CosineAnnealingLR(optimizer, batches * options.epochs)
    return Setup(options, data, model, optimizer, schedule, training_step(model, cross_entropy, optimizer, True))


def train(setup: Setup, out: Path | None = None, progress: bool = True) -> tuple[History, Path]:
    """Train, and leave a folder with weights, pictures, the generated program and the options.

    Parameters
    ----------
    setup : Setup
    out : Path, optional
        The folder; must not exist or be empty. ``runs/<data set>-<number>`` with a new number where None.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    (History, Path)

    Raises
    ------
    OptionError
        Where ``out`` holds something.
    """
    options, data = setup.options, setup.data
    if out is not None:
        refuse_occupied(out)
    unfinished = _unfinished_folder(out.parent if out is not None else Path("runs"), options.dataset)
    try:
        history = fit(
            setup.model,
            data,
            cross_entropy,
            setup.optimizer,
            options.epochs,
            options.batch_size,
            validation=(data.test_x, data.test_y),
            schedule=setup.schedule,
            seed=options.seed,
            progress=progress,
            step=setup.step,
        )
        _write(unfinished, setup, history)
        return history, _publish(unfinished, out, options.dataset)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_options(run: Path) -> Options:
    """The options of a run's folder.

    Raises
    ------
    DataError
        Where it is not the folder of a run.
    """
    path = run / OPTIONS_FILE
    try:
        found = json.loads(path.read_text())
        options = Options(**{**found, "hidden": tuple(found["hidden"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no such file: {path}" if isinstance(error, FileNotFoundError) else f"{path} is damaged: {error}"
        raise DataError(f"{run} is not the folder of a run ({reason})") from None
    if options.dataset not in DEFAULTS or any(type(vars(options)[name]) is not kind for name, kind in _TYPES.items()):
        raise DataError(f"{run} is not the folder of a run ({path} is damaged: its options are not valid)")
    return options


_TYPES = {name: type(value) for name, value in vars(DEFAULTS["digits"]).items()}


def _write(folder: Path, setup: Setup, history: History) -> None:
    options, data = setup.options, setup.data
    title = f"{options.dataset}: {'-'.join(map(str, (data.features, *options.hidden, len(data.classes))))}"
    (folder / OPTIONS_FILE).write_text(json.dumps(asdict(options), indent=2) + "\n")
    (folder / "history.json").write_text(json.dumps(asdict(history)) + "\n")
    save_weights(folder / "weights.npz", setup.model)
    suffix = "py" if canonical(options.device) == CPU else "cu"
    (folder / f"program.{suffix}").write_text(setup.explain().source)
    curves = {"train": history.losses, "test": history.validation_losses}
    svg.write_svg(folder / "loss.svg", svg.line_chart(curves, title, y_label="cross-entropy", log=True))
    scores = {"test": history.validation_accuracies}
    svg.write_svg(folder / "accuracy.svg", svg.line_chart(scores, title, y_label="accuracy"))
    if data.features == 2:
        svg.write_svg(folder / "boundary.svg", _boundary(setup, title))


def _boundary(setup: Setup, title: str) -> str:
    """The picture of what the model says about the plane, with the test points."""
    data = setup.data
    points = np.concatenate([data.train_x, data.test_x])
    low, high = points.min(0), points.max(0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    columns, rows = np.meshgrid(np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID))
    logits = predict(setup.model, np.stack([columns.ravel(), rows.ravel()], axis=1)).astype(np.float64)
    likelihoods = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = (likelihoods / likelihoods.sum(1, keepdims=True)).reshape(GRID, GRID, -1)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    return svg.decision_boundary(
        probabilities, data.test_x, data.test_y, extent=extent, classes=data.classes, title=title
    )


# Folders ----------------------------------------------------------------------------------------------------------


def refuse_occupied(out: Path) -> None:
    """Raise OptionError where a folder for a run holds something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} exists and is not an empty folder; choose another --out")


def _unfinished_folder(parent: Path, dataset: str) -> Path:
    folder = parent / f".{dataset}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"cannot write to {parent}: {error.strerror or error}") from None
    return folder


def _publish(unfinished: Path, out: Path | None, dataset: str) -> Path:
    """Rename the folder to its place, or to the next number that is free."""
    if out is not None:
        refuse_occupied(out)
        if out.exists():
            out.rmdir()
        return unfinished.rename(out)
    runs = unfinished.parent
    pattern = re.compile(re.escape(dataset) + r"-(\d+)")
    numbers = [int(match[1]) for path in runs.iterdir() if (match := pattern.fullmatch(path.name))]
    number = max(numbers, default=0) + 1
    while True:
        try:
            return unfinished.rename(runs / f"{dataset}-{number}")
        except OSError:
            # Another run took the number in the meantime.
            if not (runs / f"{dataset}-{number}").exists():
                raise
            number += 1
