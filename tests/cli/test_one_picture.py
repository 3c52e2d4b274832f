"""`harmonize`, one picture."""

import numpy as np
import pytest
import torch
from command_line import HEIGHT, WIDTH, command, pixels_of, said
from PIL import Image

from diffharmony_models import checkpoint, geometry
from diffharmony_models.files import images
from diffharmony_models.pipeline import DiffHarmony
from diffharmony_models.recolor import Amounts
from diffharmony_models.settings import Settings


@pytest.mark.parametrize("ending", [[], ["--ending", "transfer"], ["--ending", "paper"], ["--ending", "none"]])
def test_foreground_changes_and_background_does_not(tmp_path, pair, weights, capsys, ending):
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, *ending) == 0
    assert str(out) in said(capsys)
    before, after, mask = pixels_of(pair[0]), pixels_of(out), pixels_of(pair[1]) > 0
    assert after.shape == before.shape
    assert np.array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).mean() > 0.5


def test_the_refiner_takes_part_in_the_papers_ending(tmp_path, pair, weights):
    with_it, without = tmp_path / "with.png", tmp_path / "without.png"
    assert command("harmonize", *pair, with_it, "--checkpoint", weights, "--ending", "paper") == 0
    assert command("harmonize", *pair, without, "--checkpoint", weights, "--ending", "none") == 0
    assert not np.array_equal(pixels_of(with_it), pixels_of(without))


def test_seed_steps_sampler_resolution_and_shape_count(tmp_path, pair, weights):
    made = {}
    for options in (
        "",
        "--seed 0",
        "--seed 1",
        "--steps 2",
        "--sampler euler",
        "--resolution 192",
        "--resolution 192 --shape square",
    ):
        out = tmp_path / "out.png"
        assert command("harmonize", *pair, out, "--checkpoint", weights, "--ending", "none", *options.split()) == 0
        made[options] = out.read_bytes()
    assert made[""] == made["--seed 0"]
    assert len(set(made.values())) == len(made) - 1


@pytest.mark.parametrize("size, expected", [("50", (50, 36)), ("200", (200, 144)), ("40x90", (40, 90))])
@pytest.mark.parametrize("ending", [[], ["--ending", "paper"]])
def test_output_size(tmp_path, pair, weights, size, expected, ending):
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, "--output-size", size, *ending) == 0
    before, after = (images.read_image(path).pixels for path in (pair[0], out))
    width, height = expected
    scaled, mask = (geometry.resize(image, (height, width)) for image in (before, images.read_mask(pair[1])))
    assert after.shape == (1, 3, height, width)
    outside = (mask == 0).expand_as(after)
    assert (after - scaled)[outside].abs().max() < 1.01 / 255  # the whole picture, scaled
    assert ((after - scaled)[~outside].abs() > 1.01 / 255).float().mean() > 0.3


def test_alpha_and_profile_go_through(tmp_path, pair, weights, capsys):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgba = np.dstack([pixels_of(pair[0]), np.tile(np.arange(WIDTH, dtype=np.uint8) + 100, (HEIGHT, 1))])
    Image.fromarray(rgba).save(pair[0], icc_profile=profile)
    for name in ("out.png", "out.webp", "out.jpg"):
        assert command("harmonize", *pair, tmp_path / name, "--checkpoint", weights) == 0
        with Image.open(tmp_path / name) as written:
            assert written.info["icc_profile"] == profile
            if name == "out.jpg":
                assert written.mode == "RGB" and "transparency" in said(capsys)
            else:
                assert np.array_equal(np.asarray(written)[:, :, 3], rgba[:, :, 3])


def test_comparison_sheet(tmp_path, pair, weights):
    smooth = Image.fromarray(pixels_of(pair[0])).resize((9, 7)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    smooth.save(pair[0])
    assert (
        command(
            "harmonize",
            *pair,
            tmp_path / "out.png",
            "--checkpoint",
            weights,
            "--compare",
            tmp_path / "sheets" / "sheet.png",
        )
        == 0
    )
    sheet = pixels_of(tmp_path / "sheets" / "sheet.png").astype(float)
    width, height = 512, round(512 * HEIGHT / WIDTH)

    def panel(row: int, column: int) -> np.ndarray:
        """One of the four pictures, scaled back to the composite's size."""
        left, top = 8 + column * (width + 8), 8 + 26 + 26 + row * (height + 8 + 26)
        shown = Image.fromarray(sheet[top : top + height, left : left + width].astype(np.uint8))
        return np.asarray(shown.resize((WIDTH, HEIGHT), Image.Resampling.BOX)).astype(float)

    assert sheet.shape == (8 + 26 + 2 * (26 + height + 8), 8 + 2 * (width + 8), 3)
    composite, mask, result = (pixels_of(path).astype(float) for path in (*pair, tmp_path / "out.png"))
    assert np.abs(panel(0, 0) - composite).mean() < 6 < np.abs(result - composite)[mask > 0].mean()
    assert np.abs(panel(0, 1) - mask[:, :, None]).mean() < 6
    assert np.abs(panel(1, 1) - result).mean() < 6
    harmonized = panel(1, 0)  # what the model painted: of another background than all the others
    assert all(np.abs(harmonized - other).mean() > 15 for other in (composite, mask[:, :, None], result))
    assert 20 < harmonized.mean() < 235


@pytest.mark.parametrize(
    "value, words", [(0, "brightest value is 0"), (1, "brightest value is 1"), (120, "brightest value is 120")]
)
def test_empty_mask_gives_the_composite_back_with_a_note(tmp_path, pair, weights, capsys, value, words):
    Image.new("L", (WIDTH, HEIGHT), value).save(pair[1])
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, "--compare", tmp_path / "sheet.png") == 0
    assert words in said(capsys)
    assert np.array_equal(pixels_of(out), pixels_of(pair[0]))


@pytest.mark.parametrize("dot", [False, True], ids=["full", "one pixel"])
def test_full_mask_and_mask_smaller_than_a_latent(tmp_path, pair, weights, dot):
    mask = np.full((HEIGHT, WIDTH), 0 if dot else 255, np.uint8)
    mask[30, 40] = 255
    Image.fromarray(mask).save(pair[1])
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights) == 0
    before, after = pixels_of(pair[0]), pixels_of(tmp_path / "out.png")
    changed = (after != before).any(axis=2)
    assert not changed[mask == 0].any() and changed[mask > 0].mean() > 0.9


def test_golden_weights_work_from_their_folder(tmp_path, pair, golden_dir):
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", golden_dir, "--resolution", 64) == 0
    assert command("convert", golden_dir, tmp_path / "one.safetensors") == 0
    assert (
        command(
            "harmonize", *pair, tmp_path / "again.png", "--checkpoint", tmp_path / "one.safetensors", "--resolution", 64
        )
        == 0
    )
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_the_picture_is_that_of_the_pipeline(tmp_path, pair, weights):
    """From the same numbers, those of a graph: seed, strength, ending, radius, feather."""
    given = {"seed": 5, "strength": 0.5, "light": 0.8, "radius": 3, "feather": 2, "resolution": 128, "dtype": "float32"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights, *options) == 0
    engine = DiffHarmony.from_checkpoint(checkpoint.read(weights), dtype=torch.float32)
    settings = Settings(seed=5, amounts=Amounts(0.5, 0.8), radius=3, feather=2, resolution=128)
    expected = engine(images.read_image(pair[0]).pixels, images.read_mask(pair[1]), settings).refined
    assert (images.read_image(tmp_path / "out.png").pixels - expected).abs().max() <= 0.51 / 255


def test_strength_0_is_the_composite(tmp_path, pair, weights):
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights, "--strength", 0) == 0
    assert np.array_equal(pixels_of(tmp_path / "out.png"), pixels_of(pair[0]))


def test_a_mask_of_the_composites_proportions_is_scaled(tmp_path, pair, weights):
    with Image.open(pair[1]) as mask:
        mask.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    assert command("harmonize", pair[0], tmp_path / "large.png", tmp_path / "out.png", "--checkpoint", weights) == 0
    before, after, mask = pixels_of(pair[0]), pixels_of(tmp_path / "out.png"), pixels_of(pair[1]) > 0
    changed = (before != after).any(axis=2)
    assert changed[mask].mean() > 0.9 and not changed[:19].any() and not changed[53:].any()  # a pixel of soft edge
