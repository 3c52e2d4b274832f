import shutil
from pathlib import Path

import pytest
import torch
from support import FOLDERS, lay, tiny_networks, tiny_text_encoder

from diffharmony_models.checkpoint import Part, part_from


@pytest.fixture(scope="session")
def parts() -> dict[str, Part]:
    """Of all kinds that the published layout has. Tests must not change them."""
    torch.manual_seed(0)
    modules = tiny_networks((8, 8), (8, 8), text=8, heads=2, groups=4)
    found = {kind: part_from(module) for kind, module in modules.items() if kind in FOLDERS}
    return found | {"text_encoder": tiny_text_encoder(8)}


@pytest.fixture(scope="session")
def _attacked(parts: dict[str, Part], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attacked") / "weights"
    for kind, folder in FOLDERS.items():
        lay(root / folder, parts[kind])
    (root / "base" / "model_index.json").write_text("{}")
    return root


@pytest.fixture
def root(_attacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_attacked, tmp_path / "weights"))
