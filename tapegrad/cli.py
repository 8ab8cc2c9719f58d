"""The command ``tapegrad``: train, explain, bench, cache, info.

Errors are one line on stderr; the exit status is 2 for a wrong option and 1 for anything else.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import tapegrad
from tapegrad import config
from tapegrad.errors import OptionError, TapegradError
from tapegrad.models import runs
from tapegrad.models.activations import ACTIVATIONS
from tapegrad.models.data import DATASETS
from tapegrad.runtime import cache as disk_cache
from tapegrad.runtime import cpu, devices


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, those of the process where None, and exit."""
    cpu.on_slow_compile = _say_slow_compile
    try:
        result = command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except click.ClickException as error:
        status = _fail(error.format_message(), error.exit_code)
    except TapegradError as error:
        status = _fail(error.message, 2 if isinstance(error, OptionError) else 1)
    except (click.Abort, KeyboardInterrupt):
        status = _fail("interrupted; nothing was written", 130)
    sys.exit(status)


def _fail(message: str, status: int) -> int:
    click.echo(f"tapegrad: {' '.join(message.split())}", err=True)
    return status


def _say_slow_compile(name: str) -> None:
    from tqdm import tqdm

    # Above a progress bar, if there is one.
    tqdm.write(f"tapegrad: compiling {name} ...", file=sys.stderr)


def _widths(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """``128,64`` as widths; an empty text is a linear model."""
    if value is None:
        return None
    try:
        widths = tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise click.BadParameter(f"{value!r} is not a list of widths such as 128,64", context, parameter)
    return widths


def _network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that decide what is trained, and how."""
    options = [
        click.option("--hidden", callback=_widths, metavar="128,64", help="Widths of the hidden layers."),
        click.option("--activation", type=click.Choice(list(ACTIVATIONS)), metavar="NAME", help=", ".join(ACTIVATIONS)),
        click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training data."),
        click.option("--lr", type=click.FloatRange(min=0.0), help="Learning rate at first; it falls along a cosine."),
        click.option("--batch-size", type=click.IntRange(min=1), help="Examples in a step."),
        click.option("--optimizer", type=click.Choice(list(runs.OPTIMIZERS)), help="How parameters are updated."),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of data, first weights and order."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where it trains."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(tapegrad.__version__, prog_name="tapegrad")
@click.pass_context
def command(context: click.Context) -> None:
    """Train small networks with compiled steps, and look inside them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.argument("dataset", type=click.Choice(list(DATASETS)))
@_network_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; default runs/<data set>-<number>.")
def train(dataset: str, out: Path | None, **chosen: Any) -> None:
    """Train a network with a compiled step; weights, pictures and the program go to a new folder."""
    options = runs.choose_options(dataset, **chosen)
    if out is not None:
        runs.refuse_occupied(out)
    setup = runs.prepare(options)
    click.echo(setup.model)
    click.echo(
        f"{len(setup.data.train_x):,} examples, {options.epochs} epochs in batches of {options.batch_size}, "
        f"{options.optimizer} with lr {options.lr:g}, seed {options.seed}"
    )
    history, folder = runs.train(setup, out, progress=True)
    click.echo(f"test accuracy: {history.validation_accuracies[-1]:.4f}")
    click.echo(f"steps per second: {history.steps_per_second:,.0f}")
    click.echo(folder)


@command.command()
@click.argument("what", metavar="DATASET|RUN")
@_network_options
def explain(what: str, **chosen: Any) -> None:
    """Print every stage of the step that trains: of a data set's defaults, or of a run's folder."""
    if what not in DATASETS and not Path(what).exists():
        raise OptionError(f"{what!r} is neither a data set ({', '.join(DATASETS)}) nor the folder of a run")
    if what in DATASETS:
        options = runs.choose_options(what, **chosen)
    else:
        if any(value is not None for value in chosen.values()):
            raise OptionError("explain: a run's folder has its own options; leave out the others")
        options = runs.read_options(Path(what))
    click.echo(str(runs.prepare(options).explain()), nl=False)


@command.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def bench(options: tuple[str, ...]) -> None:
    """Print the table of benchmarks: this machine, beside the peers that are installed."""
    checkout = Path(tapegrad.__file__).parents[1]
    if not (checkout / "tests" / "benchmarks" / "__main__.py").is_file():
        raise TapegradError(
            "bench: the benchmarks are in the source archive, not in the wheel; unpack it and pip install -e . there"
        )
    sys.path.insert(0, str(checkout))
    import_module("tests.benchmarks.__main__").main(options, program="tapegrad bench")


@command.command()
@click.option("--clear", is_flag=True, help="Remove all compiled programs.")
def cache(clear: bool) -> None:
    """List the compiled programs on disk, or remove them."""
    if clear:
        click.echo(f"removed {disk_cache.clear()} programs from {disk_cache.folder()}")
        return
    entries = disk_cache.cache_entries()
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"{entry.key[:12]}  {entry.bytes / 1024:8.1f} kB  {used}  {entry.name}")
    total = sum(entry.bytes for entry in entries)
    click.echo(f"{len(entries)} programs, {total / 1e6:.1f} MB in {disk_cache.folder()}")


@command.command()
def info() -> None:
    """Print versions, processor, threads and folders."""
    rows = {
        "tapegrad": tapegrad.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in ("numpy", "numba", "llvmlite")},
        "processor": _processor(),
        "threads": str(config.num_threads()),
        "cache": str(disk_cache.folder()),
        "data": str(config.data_folder() or f"{config.cache_folder()} ($TAPEGRAD_DATA is not set)"),
        "gpu": _gpu(),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


def _gpu() -> str:
    try:
        return devices.device(devices.CUDA).identity()
    except TapegradError as error:
        return f"none: {error.message}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        from llvmlite import binding
    except ImportError:
        return platform.machine()
    features = binding.get_host_cpu_features()
    vectors = [name for name in ("avx512f", "avx2", "fma", "neon") if features.get(name)]
    return f"{binding.get_host_cpu_name()}, {platform.machine()}" + (f" ({', '.join(vectors)})" if vectors else "")
