"""What the Comfy Registry and ComfyUI-Manager read: the fields, the pictures, the archive, the changelog."""

import re
import subprocess

import pytest
from PIL import Image
from test_package import PROJECT, ROOT, tomllib

import diffharmony_models

COMFY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
RAW = "https://raw.githubusercontent.com/"

# What a user has to get, and what serves developers alone; folders end in "/".
SHIPPED = ("__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "nodes/", "diffharmony_models/")
SHIPPED += ("workflows/", "subgraphs/", "locales/", "web/")
KEPT_BACK = ("tests/", ".ci/", ".github/", ".gitignore", ".comfyignore", ".pre-commit-config.yaml", "CONTRIBUTING.md")


def below(files: set[str], place: str) -> set[str]:
    return {file for file in files if file == place or (place.endswith("/") and file.startswith(place))}


@pytest.fixture(scope="module")
def files() -> tuple[set[str], set[str]]:
    """The repository's files, and those that the archive holds.

    comfy-cli reads .comfyignore as git reads .gitignore.
    """

    def git(*arguments: str) -> set[str]:
        command = ["git", "-C", str(ROOT), "-c", "core.quotePath=false", "ls-files", *arguments]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    if not (ROOT / ".git").exists():
        pytest.skip("no git repository here; the archive is made of what git tracks")
    tracked = git("--cached")
    return tracked, tracked - git("--cached", "--ignored", "--exclude-from", str(ROOT / ".comfyignore"))


def test_the_fields_are_complete():
    owner, name = re.fullmatch(r"https://github\.com/([\w-]+)/([\w-]+)", PROJECT["urls"]["Repository"]).groups()
    assert name == PROJECT["name"] and owner == COMFY["PublisherId"]
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(PROJECT["urls"])
    assert all(url.startswith(PROJECT["urls"]["Repository"]) for url in PROJECT["urls"].values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert (
        PROJECT["description"] and PROJECT["license"] == {"text": "Apache-2.0"} and (ROOT / PROJECT["readme"]).is_file()
    )
    assert "Operating System :: OS Independent" in PROJECT["classifiers"]
    assert COMFY["DisplayName"] and re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])


def test_web_is_announced_once():
    """In pyproject.toml and as WEB_DIRECTORY the host would serve, and run, every script twice."""
    assert "web" not in COMFY and "WEB_DIRECTORY" in (ROOT / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("field, largest, proportions", [("Icon", (800, 400), 1), ("Banner", (1680, 720), 21 / 9)])
def test_the_pictures_are_where_their_addresses_say(files, field, largest, proportions):
    repository = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    path = COMFY[field].removeprefix(f"{RAW}{repository}/main/")
    assert path in files[0], f"{field} must be the raw address of a file of this repository, not {COMFY[field]}"
    with Image.open(ROOT / path) as picture:
        width, height = picture.size
    assert width <= largest[0] and height <= largest[1] and width / height == pytest.approx(proportions, rel=0.01)


@pytest.mark.parametrize("place", SHIPPED)
def test_the_archive_holds_what_users_need(files, place):
    tracked, archive = files
    assert below(tracked, place) and below(archive, place) == below(tracked, place)


@pytest.mark.parametrize("place", KEPT_BACK)
def test_the_archive_leaves_out_what_is_for_developers(files, place):
    tracked, archive = files
    assert below(tracked, place) and not below(archive, place)


def test_the_archive_can_be_imported(files):
    """The nodes, and the weights that they name; nothing that a relative import would miss."""
    assert "diffharmony_models/weights/diffharmony-small.safetensors" in files[1]
    assert not {file for file in files[0] - files[1] if file.endswith(".py") and not file.startswith("tests/")}


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert diffharmony_models.__version__ in versions
