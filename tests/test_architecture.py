"""The rooms and their floors: no import climbs, none goes in a circle, and importing tapegrad is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"tapegrad": ROOT / "tapegrad", "tapegrad.kernels": ROOT / "kernels", "tapegrad.models": ROOT / "models"}

#: From the ground up; a module may import from its own floor and from those before it.
FLOORS = ["ground", "kernels", "runtime", "compiler", "derivatives", "public", "models", "cli"]
GROUND = {"errors", "config", "primitives", "ir", "_checkout"}
#: Each a reason to look twice: what a random primitive means is the counter-based generator itself.
EXCEPTIONS = {("tapegrad.primitives", "tapegrad.kernels.cpu.philox")}


def modules() -> dict[str, Path]:
    """Every module of the package, by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "tapegrad" and parts[0] in ("kernels", "models"):
                continue
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    """The number of the floor that a module stands on."""
    room = module.split(".")[1] if "." in module else ""
    if room in GROUND:
        return FLOORS.index("ground")
    if room in ("cli", "__main__"):
        return FLOORS.index("cli")
    return FLOORS.index(room if room in FLOORS else "public")


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that may run, those inside functions too, without those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from statements(other)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from statements(node)


def imports(module: str) -> set[tuple[str, int]]:
    """The modules of this project that a module imports, with the line."""
    found = set()
    for node in statements(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module}:{node.lineno}: a relative import hides the floor it reaches"
            names = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else str(node.module)
                for alias in node.names
            ]
        found |= {(name, node.lineno) for name in names if name in MODULES}
    return found


def test_every_room_is_seen() -> None:
    assert {"tapegrad", "tapegrad.ir.graph", "tapegrad.kernels.cpu", "tapegrad.models.data"} <= set(MODULES)
    assert ("tapegrad.models.data.catalog") in {name for name, _ in imports("tapegrad.models.data")}


def test_no_import_climbs() -> None:
    climbing = [
        f"{module}:{line} ({FLOORS[floor(module)]}) imports {name} ({FLOORS[floor(name)]})"
        for module in MODULES
        for name, line in imports(module)
        if floor(name) > floor(module) and (module, name) not in EXCEPTIONS
    ]
    assert not climbing, "\n".join(climbing)


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: {name for name, _ in imports(module)} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", ["tapegrad", "tapegrad.models"])
def test_importing_loads_no_compiler_and_no_command_line(module: str) -> None:
    heavy = ("numba", "llvmlite", "cupy", "scipy", "matplotlib", "tqdm", "click", "typer", "importlib.metadata")
    heavy += ("tapegrad.compiler.program", "tapegrad.ir.kernel", "tapegrad.scalar_tape", "urllib.request", "ssl")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == []
