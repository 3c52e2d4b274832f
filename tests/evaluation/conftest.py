"""Three pairs, and a checkpoint of the smallest widths."""

import math

import numpy as np
import pytest
import torch
from evaluated_pairs import SHARES, save
from PIL import Image
from support import smallest_networks

from diffharmony_models import checkpoint
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.networks.harmony_vae import HarmonyVAE


@pytest.fixture
def dataset(tmp_path):
    """Three pairs of 320x256 pictures in two subsets: a darker foreground, and in the first subset a background that
    differs by 3.
    """
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for entry, share in SHARES.items():
        subset, _, name = entry.split("/")
        image, mask_number, _ = name.rsplit("_", 2)
        side = math.sqrt(share)
        mask = np.zeros((256, 320), np.uint8)
        mask[10 : 10 + round(256 * side), 20 : 20 + round(320 * side)] = 255
        smooth = Image.fromarray(generator.integers(0, 250, (9, 9, 3), dtype=np.uint8)).resize(
            (320, 256), Image.Resampling.BICUBIC
        )
        real = np.minimum(np.asarray(smooth), 250)
        composite = np.where(mask[..., None] > 0, real // 2, real + 3 * (subset == "First")).astype(np.uint8)
        save(root / entry, composite)
        save(root / subset / "masks" / f"{image}_{mask_number}.png", mask)
        if not (root / subset / "real_images" / f"{image}.png").exists():
            save(root / subset / "real_images" / f"{image}.png", real)
        else:  # two masks of one picture: their composites start from the same real one
            real = np.asarray(Image.open(root / subset / "real_images" / f"{image}.png"))
            save(root / entry, np.where(mask[..., None] > 0, real // 2, real + 3).astype(np.uint8))
    (root / "IHD_test.txt").write_text("\n".join(SHARES) + "\n")
    return root


@pytest.fixture(scope="module")
def parts():
    """A whole DiffHarmony with random weights at the smallest widths, working at 64."""
    torch.manual_seed(0)
    modules = smallest_networks()
    colors = ColorRegressor(size=64)
    torch.nn.init.normal_(colors.curve.bias, std=0.05)  # at first it is 0, no change
    modules |= {"color_regressor": colors, "harmony_vae": HarmonyVAE.from_vae(modules["vae"])}
    return {name: checkpoint.part_from(module) for name, module in modules.items()}


@pytest.fixture
def weights(parts, tmp_path):
    def write(**changes):
        path = tmp_path / "tiny.safetensors"
        held = {**parts, "harmony_vae": None, "null_text": torch.ones(2, 8), "resolution": 64, **changes}
        checkpoint.write(checkpoint.Checkpoint("tiny", **held), path)
        return path

    return write
