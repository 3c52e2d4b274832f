"""The smallest checkpoint, and a composite with its mask."""

from pathlib import Path

import pytest
import torch
from command_line import make_pair
from support import smallest_networks

from diffharmony_models import checkpoint


@pytest.fixture(scope="session")
def tiny() -> checkpoint.Checkpoint:
    """A whole DiffHarmony with random weights at the smallest widths, working at 64."""
    torch.manual_seed(0)
    parts = {kind: checkpoint.part_from(network) for kind, network in smallest_networks().items()}
    return checkpoint.Checkpoint("tiny", **parts, null_text=torch.randn(2, 8), resolution=64)


@pytest.fixture(scope="session")
def weights(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.write(tiny, path)
    return path


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return make_pair(tmp_path)
