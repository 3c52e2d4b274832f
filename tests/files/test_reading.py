"""Pictures and masks of every kind, as they are read."""

import numpy as np
import pytest
import torch
from picture_files import HEIGHT, WIDTH, as_bytes, profile
from PIL import Image, ImageCms

from diffharmony_models.files import decoding, images


def _palette(colours):
    image = Image.fromarray(colours).quantize(16)
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize(
    "make, name, alpha",
    [
        (lambda rgb: Image.fromarray(rgb).convert("1"), "a.png", False),
        (lambda rgb: Image.fromarray(rgb).convert("L"), "a.png", False),
        (lambda rgb: Image.fromarray(rgb).convert("LA"), "a.png", True),
        (lambda rgb: Image.fromarray(rgb).convert("P"), "a.gif", False),
        (_palette, "a.png", True),
        (lambda rgb: Image.fromarray(rgb).convert("RGBA"), "a.tif", True),
        (lambda rgb: Image.fromarray(rgb).convert("CMYK"), "a.tif", False),
        (lambda rgb: Image.fromarray(rgb).convert("YCbCr"), "a.tif", False),
        (lambda rgb: Image.fromarray(rgb).convert("RGB"), "a.bmp", False),
    ],
)
def test_every_mode_reads_as_pillow_shows_it(tmp_path, colours, make, name, alpha):
    image = make(colours)
    image.save(tmp_path / name)
    picture = images.read_image(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        shown = opened.convert("RGBA")
    visible = np.asarray(shown)[:, :, 3] > 0  # what lies under full transparency may differ
    assert np.array_equal(as_bytes(picture.pixels)[visible], np.asarray(shown)[:, :, :3][visible])
    assert (picture.alpha is not None) == alpha
    if alpha:
        assert np.array_equal(as_bytes(picture.alpha)[:, :, 0], np.asarray(shown)[:, :, 3])


def test_lab_becomes_rgb(tmp_path, colours):
    smooth = Image.fromarray(colours).resize((4, 4)).resize((WIDTH, HEIGHT))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(smooth, srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    assert np.abs(as_bytes(images.read_image(tmp_path / "a.tif").pixels).astype(int) - np.asarray(smooth)).mean() < 3


def test_a_profile_that_is_not_for_rgb_is_not_passed_on(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=profile("LAB"))
    assert images.read_image(tmp_path / "a.png").icc_profile is None


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path, name):
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(tmp_path / name)
    picture = images.read_image(tmp_path / name)
    expected = torch.from_numpy(deep.astype(np.float32) / 65535)
    assert torch.allclose(picture.pixels, expected.expand(1, 3, -1, -1), atol=1e-6)
    assert torch.allclose(images.read_mask(tmp_path / name), expected[None, None], atol=1e-6)


def test_exif_orientation_is_applied(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by a quarter to the right
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    picture = images.read_image(tmp_path / "a.png")
    assert picture.turned and picture.size == (WIDTH, HEIGHT)
    assert np.array_equal(as_bytes(picture.pixels), np.rot90(colours, -1))


def test_of_several_frames_the_first_is_read_and_said_so(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = images.read_image(tmp_path / "a.gif")
    assert picture.pixels[0, 0].min() == 1 and picture.pixels[0, 2].max() == 0
    assert "several frames" in caplog.text


def _half(high, low):
    array = np.full((HEIGHT, WIDTH), low, dtype=np.uint8)
    array[:, : WIDTH // 2] = high
    return array


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(_half(255, 0)),
        Image.fromarray(_half(255, 0)).convert("1"),
        Image.fromarray(_half(255, 0)).convert("RGB"),
        Image.fromarray(np.dstack([_half(255, 0), _half(0, 0), _half(0, 0)])),  # red on black
        Image.fromarray(
            np.dstack([_half(0, 255)] * 3 + [_half(255, 0)])
        ),  # alpha says the opposite of the colours, and counts
        Image.fromarray(np.dstack([_half(255, 0)] * 3 + [_half(255, 255)])),  # opaque all over: the colours count
        Image.fromarray(np.dstack([_half(90, 90), _half(255, 0)])),  # LA
    ],
    ids=["L", "1", "RGB", "red", "alpha", "opaque", "LA"],
)
def test_masks_of_every_kind(tmp_path, image):
    image.save(tmp_path / "mask.png")
    mask = images.read_mask(tmp_path / "mask.png")
    assert mask.shape == (1, 1, HEIGHT, WIDTH)
    assert torch.equal(mask[0, 0], torch.from_numpy(_half(1, 0)).float())


def test_soft_masks_stay_soft(tmp_path):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (HEIGHT, 1))
    Image.fromarray(ramp).save(tmp_path / "mask.png")
    assert np.array_equal(as_bytes(images.read_mask(tmp_path / "mask.png"))[:, :, 0], ramp)


def test_pillow_images_are_what_the_tensors_are(tmp_path, colours):
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    alpha = Image.fromarray(np.dstack([colours, colours[:, :, :1]]))
    for name, image in (("a.png", Image.fromarray(colours)), ("deep.png", Image.fromarray(deep)), ("alpha.png", alpha)):
        path = tmp_path / name
        image.save(path)
        picture, mask = decoding.open_picture(path), decoding.open_mask(path)
        assert (picture.mode, mask.mode) == ("RGB", "L")
        assert np.array_equal(np.asarray(picture), as_bytes(images.read_image(path).pixels))
        assert np.array_equal(np.asarray(mask), as_bytes(images.read_mask(path))[:, :, 0])


def test_a_jpeg_may_be_read_smaller(tmp_path):
    Image.new("RGB", (640, 400), "teal").save(tmp_path / "a.jpg")
    assert decoding.open_picture(tmp_path / "a.jpg").size == (640, 400)
    small = decoding.open_picture(tmp_path / "a.jpg", least_side=90)
    assert small.size == (160, 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 400), "teal").save(tmp_path / "turned.jpg", exif=exif)
    assert decoding.open_picture(tmp_path / "turned.jpg", least_side=90).size == (100, 160)
