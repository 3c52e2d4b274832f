import json
import shutil
from pathlib import Path

import pytest
import torch
from support import FOLDERS, lay, tiny_checkpoint, tiny_text_encoder

from diffharmony_models.checkpoint import Checkpoint, Part


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """A whole checkpoint of other widths than the published ones. Tests must not change it."""
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def text_encoder() -> Part:
    return tiny_text_encoder()


@pytest.fixture(scope="session")
def _published(tiny: Checkpoint, text_encoder: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published") / "weights"
    for pipeline, unet in (("base", "unet"), ("inverse", "weights-102800")):
        folder = root / pipeline
        lay(folder / unet, tiny.unet)
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
        lay(folder / "vae", tiny.vae)
        lay(folder / "text_encoder", text_encoder, "pytorch_model.bin")
        for name in ("tokenizer", "feature_extractor", "safety_checker", "scheduler"):
            (folder / name).mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text('{"timestep_spacing": "leading"}')
        (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
        (folder / "safety_checker" / "config.json").write_text(
            json.dumps({"architectures": ["StableDiffusionSafetyChecker"]})
        )
        torch.save({"concept_embeds": torch.zeros(3)}, folder / "safety_checker" / "pytorch_model.bin")
    with torch.no_grad():  # the two must be told apart
        inverse = {key: value + 1 for key, value in tiny.unet.state.items()}
    lay(root / "inverse" / "weights-102800", Part(tiny.unet.config, inverse))
    lay(root / FOLDERS["refiner"], tiny.refiner)
    lay(root / FOLDERS["harmony_vae"], tiny.harmony_vae)
    return root


@pytest.fixture
def root(_published: Path, tmp_path: Path) -> Path:
    """The unpacked zip, at tiny width."""
    return Path(shutil.copytree(_published, tmp_path / "downloads" / "weights"))
