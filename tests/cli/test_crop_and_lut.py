"""`harmonize --crop` and `--lut`."""

import numpy as np
import pytest
from command_line import command, make_pair, pixels_of, refused, said
from PIL import Image

from diffharmony_models import crop
from diffharmony_models.files import images


@pytest.fixture
def small(tmp_path):
    """A composite with a foreground of 0.8 % of it."""
    composite, mask = make_pair(tmp_path)
    Image.fromarray(np.random.default_rng(3).integers(40, 200, (200, 300, 3), dtype=np.uint8)).save(composite)
    pixels = np.zeros((200, 300), np.uint8)
    pixels[60:80, 100:124] = 255
    Image.fromarray(pixels).save(mask)
    return composite, mask


def harmonized(pair, out, *options) -> np.ndarray:
    assert command("harmonize", *pair, out, *options) == 0
    return pixels_of(out)


def test_a_crop_is_what_its_window_gives_alone(small, tmp_path):
    whole = harmonized(small, tmp_path / "whole.png")
    auto = harmonized(small, tmp_path / "auto.png", "--crop", "auto")
    assert np.array_equal(auto, harmonized(small, tmp_path / "two.png", "--crop", 2))
    assert not np.array_equal(auto, whole)
    mask = images.read_mask(small[1])
    window = crop.around(mask, 2)
    cut = tmp_path / "cut.png", tmp_path / "cut_mask.png"
    images.write_image(cut[0], window.cut(images.read_image(small[0]).pixels))
    images.write_image(cut[1], window.cut(mask).expand(-1, 3, -1, -1))
    alone = harmonized(cut, tmp_path / "alone.png")
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    assert np.abs(auto[rows, columns].astype(int) - alone).max() <= 1
    outside = images.read_mask(small[1])[0, 0].numpy() == 0
    assert np.array_equal(auto[outside], pixels_of(small[0])[outside])


def test_auto_leaves_a_large_foreground_as_it_is(pair, tmp_path):
    whole = harmonized(pair, tmp_path / "whole.png")
    assert np.array_equal(whole, harmonized(pair, tmp_path / "auto.png", "--crop", "auto"))


def test_the_table_is_written_and_what_it_leaves_out_is_said(pair, tmp_path, capsys):
    harmonized(pair, tmp_path / "out.png", "--lut", tmp_path / "look.cube")
    assert (tmp_path / "look.cube").read_text().startswith('TITLE "look"\nLUT_3D_SIZE 33\n')
    assert "look.cube written: the change is ΔE" in said(capsys)


@pytest.mark.parametrize(
    "given, words",
    [
        (("--crop", "much"), "must be a number from 1 to 8, not 'much'; or give off or auto"),
        (("--crop", 0.5), "must be a number from 1 to 8"),
        (("--lut", "look.png"), "give one that ends in .cube"),
    ],
)
def test_bad_values_are_refused(pair, tmp_path, capsys, given, words):
    assert words in refused(capsys, "harmonize", *pair, tmp_path / "out.png", *given)


def test_a_table_of_a_folder_is_refused(pair, tmp_path, capsys):
    folders = pair[0].parent, pair[1].parent, tmp_path / "outs"
    assert "a table is of one picture" in refused(capsys, "harmonize", *folders, "--lut", tmp_path / "look.cube")
