"""README and docs do what they say: code runs, outputs are those shown, commands and links exist.

A Python block runs statement by statement in one namespace for its file. What a statement prints is compared with the
comment ``# -> ...`` at its end; a comment of numbers alone is compared in the digits shown; ``>>>`` as in a doctest.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tapegrad as tg
from tapegrad import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and the line on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    language, lines, start = None, [], 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines, start = line.strip("` "), [], number + 1
        else:
            yield Block(language, "\n".join(lines) + "\n", start)
            language = None
    assert language is None, f"{page}: a block is not closed"


def has_python(page: Path) -> bool:
    return any(block.language == "python" for block in blocks(page))


def identity(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_markers(page: Path) -> Any:
    return pytest.param(page, marks=pytest.mark.simulated) if page.name == "gpu.md" else page


@pytest.mark.parametrize("page", [with_markers(page) for page in PAGES if has_python(page)], ids=identity)
def test_code_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config.data_folder()
    if "mnist(" in page.read_text(encoding="utf-8") and (folder is None or not (folder / "mnist").is_dir()):
        pytest.skip("no MNIST here: put its four IDX files into $TAPEGRAD_DATA/mnist to run this page")
    if page.name == "gpu.md":
        stand_in_for_a_gpu(monkeypatch)
    monkeypatch.chdir(tmp_path)
    tg.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        if block.text.lstrip().startswith(">>>"):
            run_session(block, page, names)
        else:
            run_statements(block, page, names)


def stand_in_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "cuda" be the simulated device, and CuPy its own, for one test."""
    from tapegrad import placement
    from tapegrad.runtime import devices
    from tests.cudasim import cupy
    from tests.cudasim.device import simulated_device
    from tests.cudasim.simulator import available

    if not available():
        pytest.skip("there is no g++ to compile CUDA C for the CPU")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(devices._devices, "cuda:0", simulated_device())
    monkeypatch.setattr(placement, "_process", "cpu")  # put back where the page fails before it does that itself


def run_session(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Run a block of ``>>>`` lines and compare every output."""
    test = doctest.DocTestParser().get_doctest(block.text, {}, identity(page), str(page), block.line - 1)
    test.globs = names
    report = io.StringIO()
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
    assert not outcome.failed, report.getvalue()


def run_statements(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Run a block one statement at a time and compare what the comments show."""
    # Line numbers are the page's, so that messages that name a line name it there.
    tree = ast.parse("\n" * (block.line - 1) + block.text)
    lines = page.read_text(encoding="utf-8").splitlines()
    for statement in tree.body:
        printed = io.StringIO()
        module = ast.Module([statement], [])
        with contextlib.redirect_stdout(printed):
            exec(compile(module, str(page), "exec"), names)
        assert statement.end_lineno is not None
        rest = lines[statement.end_lineno - 1].encode()[statement.end_col_offset or 0 :].decode()
        shown = comment(rest)
        if shown is not None and printed.getvalue():
            place = f"{identity(page)}:{statement.end_lineno}"
            assert agrees(shown, printed.getvalue()), f"{place} shows {shown!r}, but prints {printed.getvalue()!r}"


def comment(rest: str) -> str | None:
    """The output that a comment shows, if it shows one."""
    arrow = re.match(r"\s*# -> (.*)$", rest)
    numbers = re.match(rf"\s*# ({NUMBER}(?:, {NUMBER})*)$", rest)
    return arrow[1] if arrow else numbers[1] if numbers else None


def agrees(shown: str, printed: str) -> bool:
    """Whether an output is the one shown: as in a doctest, or number for number in the digits shown."""
    if doctest.OutputChecker().check_output(shown + "\n", printed, FLAGS):
        return True
    if not re.fullmatch(rf"{NUMBER}(?:, {NUMBER})*", shown):
        return False
    wanted = re.findall(NUMBER, shown)
    found = re.findall(rf"(?<![\w.]){NUMBER}", re.sub(r"dtype=\w+|shape=\([^)]*\)", "", printed.replace(". ", ".0 ")))
    digits = [len(text.partition(".")[2]) for text in wanted]
    return len(found) == len(wanted) and all(
        round(float(number), places) == float(text) for number, text, places in zip(found, wanted, digits, strict=True)
    )


# Commands ---------------------------------------------------------------------------------------------------------


def commands() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("", "sh", "bash", "console"):
                for number, line in enumerate(block.text.splitlines(), block.line):
                    for part in line.split("#")[0].split("&&"):
                        if part.strip().removeprefix("$ ").startswith("tapegrad "):
                            yield pytest.param(part.strip().removeprefix("$ "), id=f"{identity(page)}:{number}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_exist_with_their_options(line: str) -> None:
    from tapegrad.cli import command

    words = shlex.split(line.replace("...", ""))[1:]
    assert words[0] in command.commands, f"tapegrad has no command {words[0]!r}"
    subcommand = command.commands[words[0]]
    synopsis = any(mark in line for mark in "[|")
    if not synopsis:
        subcommand.make_context(words[0], words[1:])  # raises where a word or a value is wrong
        return
    options = {name for parameter in subcommand.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for option in re.findall(r"--[\w-]+", line):
        assert option in options, f"tapegrad {words[0]} has no option {option}"
    if "|" in words[1]:
        (argument,) = [parameter for parameter in subcommand.params if parameter.param_type_name == "argument"]
        known = getattr(argument.type, "choices", None) or str(argument.metavar).split("|")
        assert {*words[1].split("|")} == {*known}


# Links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{identity(page)} links to {target}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
            assert heading in slugs, f"{identity(page)} links to {target}, which has no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        queue += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert reached >= {*PAGES}, sorted(identity(page) for page in {*PAGES} - reached)


def test_the_checks_find_what_is_wrong() -> None:
    assert agrees("1, 0.42, 0.0099", "Tensor([1.        , 0.41997433, 0.00986604], dtype=float32)\n")
    assert not agrees("1, 0.43, 0.0099", "Tensor([1.        , 0.41997433, 0.00986604], dtype=float32)\n")
    assert not agrees("1, 0.42", "Tensor([1.        , 0.41997433, 0.00986604], dtype=float32)\n")
    assert agrees("loss 0.1...", "loss 0.123\n") and not agrees("loss 0.2...", "loss 0.123\n")


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "tapegrad"
    folders = [package, *(package / room for room in ("ir", "compiler", "runtime"))]
    modules = {path.stem for folder in folders for path in folder.glob("*.py")} - {"__init__", "__main__", "_checkout"}
    named = {*re.findall(r"`(\w+)`", text)}
    assert modules <= named, f"not in docs/architecture.md: {sorted(modules - named)}"
