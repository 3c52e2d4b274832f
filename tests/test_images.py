import errno
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from diffharmony_models import images
from diffharmony_models.errors import InputError

HEIGHT, WIDTH = 24, 32


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """uint8 [H, W, 3] with every channel different and no two neighbours equal."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def profile(name: str = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


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


def _png_of(width, height):
    """A PNG that claims a size its few bytes do not have."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def _encoded(colours, kind):
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda rgb: b"", "not a picture"),
        (lambda rgb: b"hello", "not a picture"),
        (lambda rgb: _encoded(rgb, "PNG")[:300], "damaged or cut short"),
        (lambda rgb: _encoded(rgb, "JPEG")[:700], "damaged or cut short"),
        (lambda rgb: _encoded(rgb, "WEBP")[:300], "cannot be read"),
        (lambda rgb: _encoded(rgb, "TIFF")[:500], "cannot be read"),
        (lambda rgb: _png_of(20000, 9000), "too large"),
        (lambda rgb: _png_of(100000, 100000), "too large"),
    ],
    ids=["nothing", "text", "png", "jpeg", "webp", "tiff", "large", "bomb"],
)
@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_unreadable_files_say_so(tmp_path, colours, content, words, read):
    path = tmp_path / "bad.png"
    path.write_bytes(content(colours))
    with pytest.raises(ValueError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_large_comment_in_a_png_is_no_crash(tmp_path, colours):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    Image.fromarray(colours).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(ValueError, match="cannot be read"):
        images.read_image(tmp_path / "a.png")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png: there is no such file"):
        images.read_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder"):
        images.read_image(tmp_path)


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


def test_no_room_is_called_by_its_name(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no room on the disk to write"):
        images.write_image(tmp_path / "out.png", torch.rand(1, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_comparison_sheet_shows_every_panel_at_one_scale():
    red, mask, green = torch.zeros(1, 3, 20, 40), torch.ones(1, 1, 40, 80), torch.zeros(1, 3, 10, 20)
    red[:, 0], green[:, 1] = 1, 1
    rows = [[("composite", red), ("mask", mask)], [("a label much too long for its picture " * 3, green)]]
    sheet = images.comparison_sheet(rows, side=128, title="picture.png")
    assert sheet.shape[:2] == (1, 3) and sheet.shape[3] == 8 + 2 * (128 + 8)
    for colour in ((1, 0, 0), (0, 1, 0)):
        area = (sheet[0] == torch.tensor(colour).view(3, 1, 1)).all(dim=0).sum()
        assert area == 128 * 64
