"""The tools that keep the code in order: ruff, mypy, import-linter. Settings are in pyproject.toml."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "diffharmony_nodes"  # a clone's folder may have any name, mypy takes only a package's


def said(tool: str, command: list[str], folder: Path = ROOT) -> tuple[int, str]:
    """Runs a tool with this Python. Returns its exit code and what it said."""
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; pip install -e '.[test]' installs it")
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff(command: tuple[str, ...]) -> None:
    code, words = said("ruff", ["-m", "ruff", *command, "--no-cache", "."])
    assert code == 0, words


def test_types(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).symlink_to(ROOT, target_is_directory=True)
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.devnull]
    parts = [f"{PACKAGE}/{part}" for part in ("__init__.py", "diffharmony_models", "nodes")]
    code, words = said("mypy", ["-m", "mypy", *settings, *parts], tmp_path)
    assert code == 0, words


def test_the_direction_of_imports() -> None:
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    code, words = said("importlinter", ["-c", command, "--no-cache"])
    assert code == 0, words
