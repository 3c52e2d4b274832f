"""Pictures are written whole or not at all, and read back as they were."""

import errno
import os
import sys

import numpy as np
import pytest
import torch
from picture_files import HEIGHT, WIDTH, profile
from PIL import Image

from diffharmony_models.errors import InputError
from diffharmony_models.files import images


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_lossless_formats_give_every_pixel_back(tmp_path, colours, extension):
    source, target = tmp_path / "in.png", tmp_path / f"out.{extension}"
    Image.fromarray(colours).save(source, icc_profile=profile())
    picture = images.read_image(source)
    assert (
        picture.pixels.shape == (1, 3, HEIGHT, WIDTH)
        and picture.pixels.dtype == torch.float32
        and picture.size == (HEIGHT, WIDTH)
    )
    images.write_image(target, picture.pixels, picture.icc_profile)
    with Image.open(target) as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), colours)
        assert written.info["icc_profile"] == profile()


def test_jpeg_keeps_colour_resolution_and_profile(tmp_path):
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[:, 0, :, ::2], stripes[:, 2, :, 1::2] = 0.8, 0.8  # red and blue columns, which 4:2:0 would mix
    images.write_image(tmp_path / "out.jpg", stripes, profile())
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.info["icc_profile"] == profile()
        assert np.abs(np.asarray(written) / 255 - stripes[0].permute(1, 2, 0).numpy()).max() < 0.15


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_alpha_is_kept_with_the_colours_under_it(tmp_path, colours, extension):
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)
    rgba = np.dstack([colours, alpha])
    Image.fromarray(rgba).save(tmp_path / "in.png")
    picture = images.read_image(tmp_path / "in.png")
    images.write_image(tmp_path / f"out.{extension}", picture.pixels, alpha=picture.alpha)
    with Image.open(tmp_path / f"out.{extension}") as written:
        assert written.mode == "RGBA" and np.array_equal(np.asarray(written), rgba)


@pytest.mark.skipif(sys.platform == "win32", reason="special files")
def test_results_replace_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    for name, words in (("pipe", "not a regular file"), ("loop", "symbolic links"), ("folder", "is a folder")):
        with pytest.raises(InputError, match=words) as caught:
            images.write_image(tmp_path / f"{name}.png", torch.zeros(1, 3, 8, 8))
        assert f"{name}.png" in str(caught.value)
    with pytest.raises(InputError, match="symbolic links"):
        images.check_output(tmp_path / "loop.png" / "a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts letters")
def test_the_longest_names_can_be_written(tmp_path):
    for name in ("b" * 251, "\N{ARTIST PALETTE}" * 62):
        images.write_image(tmp_path / f"{name}.png", torch.zeros(1, 3, 8, 8))
        assert images.read_image(tmp_path / f"{name}.png").size == (8, 8)


@pytest.mark.parametrize("name", ["out", "out.gif", "out.png.txt", "out.safetensors"])
def test_unknown_extensions_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.png, \.jpg or \.webp"):
        images.check_output(tmp_path / name)
    assert images.check_output(tmp_path / "OUT.JPG") == "JPEG"


def test_sizes_that_a_format_cannot_hold_are_refused_before_the_work(tmp_path):
    images.check_output(tmp_path / "a.png", (20000, 20))
    with pytest.raises(ValueError, match="20x20000 is too large for WEBP"):
        images.check_output(tmp_path / "a.webp", (20000, 20))


@pytest.mark.parametrize(
    "bad", [torch.full((1, 3, 8, 8), float("nan")), torch.zeros(2, 3, 8, 8), torch.zeros(1, 4, 8, 8)]
)
def test_what_is_no_picture_is_not_written(tmp_path, bad):
    with pytest.raises(ValueError):
        images.write_image(tmp_path / "out.png", bad)
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_the_image_alone_and_clips(tmp_path):
    image = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
    before = image.clone()
    images.write_image(tmp_path / "new" / "out.png", image)
    assert torch.equal(image, before)
    with Image.open(tmp_path / "new" / "out.png") as written:
        assert written.getpixel((0, 0)) == (0, 128, 255)


def test_no_room_leaves_the_old_file_and_no_rest(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system then refuses the write halfway
    try:
        with pytest.raises(OSError) as caught:
            images.write_image(path, torch.rand(1, 3, 64, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["out.png"] and path.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_no_room_is_called_by_its_name(tmp_path):
    (tmp_path / f".out.png.{os.getpid()}.part").symlink_to("/dev/full")  # where the file is written at first
    with pytest.raises(OSError, match="no room on the disk to write") as caught:
        images.write_image(tmp_path / "out.png", torch.rand(1, 3, 8, 8))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []
