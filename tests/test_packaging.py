"""What is shipped: one import name, every subpackage, the data with its licence; and clear words for lost links."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SOURCES = ("kernels", "models", "tapegrad", "tests", "docs", ".ci")


def python(*arguments: str, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with ``path`` first among its import folders."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(path), "PATH": "", "TAPEGRAD_CACHE": str(cwd / "cache")},
    )


def copy_checkout(target: Path) -> Path:
    """A copy of the files that a package is built from, with links as links, and nothing that was built."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
    for path in ROOT.iterdir():
        if path.suffix in (".md", ".in", ".toml") or path.name == "LICENSE":
            shutil.copy(path, target)
    return target


def test_every_package_is_listed() -> None:
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            if package == "tapegrad" and parts[:1] in (("kernels",), ("models",)):
                continue  # the checkout's links
            found.add(".".join((package, *parts)))
    assert found == set(SETUPTOOLS["packages"])


def test_the_version_is_the_same_everywhere() -> None:
    assert f'__version__ = "{PROJECT["project"]["version"]}"' in (ROOT / "tapegrad" / "__init__.py").read_text()
    assert PROJECT["project"]["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_lies_in_a_package() -> None:
    for folder in SETUPTOOLS["package-dir"].values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path} would not be shipped: its folder is no package"


@pytest.mark.parametrize("name", ["kernels", "models"])
def test_the_bare_name_is_refused(name: str, tmp_path: Path) -> None:
    run = python("-c", f"import {name}", path=ROOT, cwd=tmp_path)
    assert run.returncode == 1
    assert f"this folder is the package tapegrad.{name}, but it was imported as '{name}'" in run.stderr


@pytest.mark.parametrize("name", ["kernels", "models"])
@pytest.mark.parametrize("arrived", ["as text", "not at all"])
def test_a_checkout_without_links_says_what_to_run(name: str, arrived: str, tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    link = tmp_path / "tapegrad" / name
    link.unlink(missing_ok=True)
    if arrived == "as text":
        link.write_text(f"../{name}")
    other = tmp_path / "tapegrad" / ("models" if name == "kernels" else "kernels")
    if not other.is_dir():
        other.symlink_to(f"../{other.name}")
    # -S leaves out site-packages, and with them a tapegrad that is installed.
    run = python("-S", "-c", "import tapegrad", path=tmp_path, cwd=tmp_path)
    assert run.returncode == 1
    assert f"ImportError: tapegrad.{name} cannot be imported" in run.stderr
    assert "run `pip install -e .` in the checkout first" in run.stderr


def test_only_what_is_documented_is_required() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]:
        assert f"`{requirement.split(';')[0]}`" in text, f"docs/dependencies.md does not defend {requirement}"
    assert not any(line.split(">")[0] == "cupy" for extra in extras.values() for line in extra)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a copy of this checkout, and the wheel built from that archive."""
    if importlib.util.find_spec("build") is None or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building offline needs the extra `test`: pip install -e '.[test]'")
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return archive, wheel


@pytest.mark.slow
def test_the_source_archive_holds_tests_and_docs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.is_relative_to(ROOT / "tapegrad" / "kernels")
        and not path.is_relative_to(ROOT / "tapegrad" / "models")
    }
    assert expected <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tapegrad/kernels", "tapegrad/models"))]


@pytest.mark.slow
def test_the_wheel_owns_one_import_name(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"tapegrad", f"tapegrad-{PROJECT['project']['version']}.dist-info"}
    assert {"tapegrad/py.typed", "tapegrad/models/data/digits.npz", "tapegrad/models/data/digits.txt"} <= set(names)
    modules = {
        path.relative_to(ROOT / folder if folder == "tapegrad" else ROOT).as_posix()
        for folder in SETUPTOOLS["package-dir"].values()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {f"tapegrad/{module}" for module in modules} <= set(names)


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_is(built: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import tapegrad, tapegrad.kernels, tapegrad.models.data as data; "
        "print(len(data.digits().test_x), tapegrad.__file__, tapegrad.kernels.__file__, data.__file__)"
    )
    run = python("-c", code, path=tmp_path / "site", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    count, *files = run.stdout.split()
    assert count == "360" and all(Path(file).is_relative_to(tmp_path / "site") for file in files)
