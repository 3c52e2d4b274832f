"""Installing the nodes into the host's environment: pip resolves it, without installing anything."""

import importlib.util
import json
import subprocess
import sys

import harness
import pytest
from test_package import PROJECT

UNTOUCHED = ("torch", "torchvision", "torchaudio", "numpy", "transformers", "diffusers", "safetensors", "pillow")


def moved(*wanted: str) -> dict[str, str]:
    """What pip would install into the host's environment, name to version; nothing that it has already."""
    found = harness.find()
    if isinstance(found, str):
        pytest.skip(found)
    if importlib.util.find_spec("pip") is None:
        pytest.skip("there is no pip in the environment that runs the tests")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(found[1]),
        "install",
        "--dry-run",
        "--quiet",
        "--report",
        "-",
        *wanted,
    ]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        each["metadata"]["name"].lower(): each["metadata"]["version"] for each in json.loads(done.stdout)["install"]
    }


@pytest.mark.parametrize(
    "wanted", [("-r", "requirements.txt"), PROJECT["dependencies"]], ids=["requirements.txt", "pyproject.toml"]
)
def test_installing_moves_nothing_of_the_host(wanted):
    assert not set(moved(*wanted)) & set(UNTOUCHED)
