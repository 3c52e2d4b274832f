"""What holds the repository together: imports, packaging, the README's commands, the shipped files."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffharmony_models
from diffharmony_models import __main__ as command_line

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffharmony_models"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("diffusers", "transformers", "accelerate")
LARGEST_CHECKPOINT = 40_000_000  # bytes


def python(code: str) -> str:
    """What a fresh interpreter prints. Only the repository is on its path before the installed packages."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands() -> list[str]:
    """Every line of the README's code blocks, `\\` at a line's end undone."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [
        line
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def arguments(line: str) -> list[str] | None:
    """What stands behind `-m diffharmony_models` in a line of the shell; None where the line runs something else."""
    words = shlex.split(line, comments=True)
    if "diffharmony_models" not in words:
        return None
    found = words[words.index("diffharmony_models") + 1 :]
    ends = [place for place, word in enumerate(found) if word in ("&&", "||", ";", "|", "&")]
    return found[: ends[0]] if ends else found


@pytest.mark.slow
def test_importing_the_package_is_quick_and_light():
    heavy = (*HEAVY, "torch")
    code = (
        "import sys, time, diffharmony_models\n"
        f"print(time.process_time(), *[name for name in {heavy} if name in sys.modules])"
    )
    seconds, *loaded = python(code).split()
    assert not loaded
    assert float(seconds) < 3  # of processor time, so that a busy machine does not count


def of_the_engine(path: Path) -> set[str]:
    """The engine's modules that a file of the nodes imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in (node.module, *names) if module_file(name)}
    return found


def module_file(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.slow
def test_what_the_nodes_import_is_free_of_diffusers():
    modules = sorted(set().union(*map(of_the_engine, (ROOT / "nodes").rglob("*.py"))))
    assert {"diffharmony_models.checkpoint", "diffharmony_models.geometry"} <= set(modules)
    code = (
        f"import importlib, sys\nfor module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    print(module, *[name for name in {HEAVY} if name in sys.modules])"
    )
    loaded = python(code).split("\n")[:-1]
    assert loaded == modules, "what stands behind a module was pulled in by it; import it where it is used"


@pytest.mark.slow
def test_help_is_light():
    code = (
        "import contextlib, io, sys; from diffharmony_models.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        f"print([name for name in {(*HEAVY, 'torch')} if name in sys.modules])"
    )
    assert python(code).strip() == "[]"


def imported(path: Path) -> set[str]:
    """The packages that a file imports by their absolute names, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_import_is_declared():
    names = {"PIL": "pillow", "skimage": "scikit-image"}
    extras = PROJECT["optional-dependencies"]
    declared = {
        re.split(r"[\[<>=!~ ;]", line)[0] for line in (*PROJECT["dependencies"], *extras["cli"], *extras["train"])
    }
    known = {names.get(name, name) for path in PACKAGE.rglob("*.py") for name in imported(path)}
    assert known - set(sys.stdlib_module_names) - {"diffharmony_models"} <= declared


@pytest.mark.slow
def test_the_program_of_the_shell_ends_as_python_does():
    """`diffharmony COMMAND`: the exit code is the command's."""
    module, name = PROJECT["scripts"]["diffharmony"].split(":")
    for arguments, code in ((["--version"], 0), (["harmonize"], 2)):
        start = f"import sys; sys.argv[1:] = {arguments}; from {module} import {name}; sys.exit({name}())"
        done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


def test_versions_agree():
    assert PROJECT["version"] == diffharmony_models.__version__


def test_requirements_are_the_dependencies_and_pin_nothing():
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert sorted(lines) == sorted(PROJECT["dependencies"])
    assert not [line for line in lines if re.match(r"torch|diffusers|transformers|accelerate", line) or "==" in line]


def test_the_name_is_one_that_the_registry_takes():
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", PROJECT["name"]) and "comfy" not in PROJECT["name"].lower()


def test_ci_runs_the_command_of_the_readme():
    found = [line for line in commands() if line.endswith("-m pytest tests") and line.startswith("python3 -m venv")]
    assert len(found) == 1, "the README gives one command that passes the tests"
    assert found[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", [line for line in commands() if arguments(line) is not None])
def test_the_commands_of_the_readme_are_understood(line):
    given = arguments(line)
    parsed = command_line._parser(given).parse_args(given)
    assert parsed.command == given[0]


def test_the_readme_shows_every_command():
    shown = {given[0] for given in map(arguments, commands()) if given}
    assert set(command_line.COMMANDS) <= shown


def test_the_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)|<img[^>]* src=\"([^\"]+)\"", README)
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert local
    assert not [target for target in local if not (ROOT / target).exists()]


def test_the_demo_composite():
    composite, mask = (ROOT / "workflows" / "pictures" / name for name in ("astronaut.jpg", "astronaut_mask.png"))
    with Image.open(composite) as picture, Image.open(mask) as matte:
        assert (picture.mode, matte.mode) == ("RGB", "L")
        assert picture.size == matte.size and max(picture.size) <= 768
        share = (np.asarray(matte) >= 128).mean()
    assert 0.1 < share < 0.5
    assert composite.stat().st_size + mask.stat().st_size < 300_000
    sources = (ROOT / "workflows" / "pictures" / "SOURCES.md").read_text(encoding="utf-8")
    assert composite.name in sources and mask.name in sources and "public domain" in sources


def test_the_bundled_checkpoint_is_there_and_small():
    from diffharmony_models import checkpoint

    path = checkpoint.bundled()
    assert path.is_file(), f"{path} is missing"
    assert path.resolve().parent == PACKAGE / "weights"
    assert path.stat().st_size <= LARGEST_CHECKPOINT
    assert (path.parent / "MODEL_CARD.md").is_file()


def test_pictures_are_opened_in_one_place():
    """`opening.opened` checks what comes; who opens a file with Pillow otherwise goes round it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert ("Image.open" in calls) == (path.name == "opening.py"), path
