import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "host":
            item.add_marker("host")
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The golden files of the published implementation: small random weights with their inputs and outputs."""
    folder = Path(os.environ.get("DIFFHARMONY_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not (folder / "golden.json").is_file():
        pytest.skip(f"no golden files in {folder}; set DIFFHARMONY_GOLDEN to the folder that holds golden.json")
    return folder
