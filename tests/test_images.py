import errno
import functools
import io
import logging
import os
import random
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from diffharmony_models.errors import InputError
from diffharmony_models.files import images

HEIGHT, WIDTH = 24, 32


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """uint8 [H, W, 3] with every channel different and no two neighbours equal."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@functools.cache  # a profile holds the second in which it was made
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
        (lambda rgb: _png_of(0, 5), "a.png|bad.png"),
        (lambda rgb: b"BM" + b"\0" * 16 + _encoded(rgb, "BMP")[18:].replace(b"\x20", b"\0", 1), "bad.png"),
    ],
    ids=["nothing", "text", "png", "jpeg", "webp", "tiff", "large", "bomb", "no width", "no width bmp"],
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


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "SGI", "IM", "DDS", "PDF", "TGA", "QOI"])
def test_formats_that_are_not_meant_are_never_tried(tmp_path, colours, kind):
    """Whatever the name says: an EPS would start Ghostscript."""
    path = tmp_path / "a.png"
    path.write_bytes(_encoded(colours, kind))
    with pytest.raises(InputError, match=r"a\.png is not a picture that can be read"):
        images.read_image(path)


def test_a_tga_is_known_by_its_name(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.tga")
    assert np.array_equal(as_bytes(images.read_image(tmp_path / "a.tga").pixels), colours)


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # a socket's whole name must be short


SPECIAL = {
    "pipe": (_pipe, "not a regular file"),
    "socket": (_socket, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be opened"),
    "folder": (os.mkdir, "is a folder"),
    "huge": (lambda path: path.touch() or os.truncate(path, images.MAX_BYTES + 1), "too large"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="special files")
@pytest.mark.parametrize("make, words", SPECIAL.values(), ids=SPECIAL)
def test_only_regular_files_are_opened(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        images.read_image(path)  # and nothing waits for a writer
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a\0.png", "a" * 300 + ".png"])
def test_names_that_cannot_be(name):
    with pytest.raises(InputError, match="cannot be opened"):
        images.read_mask(name)
    with pytest.raises(InputError, match="cannot write there"):
        images.check_output(name)


@pytest.mark.parametrize(
    "kind, value",
    [(3, 5), (3, (1, 2, 3)), (2, "text"), (12, 1.5), (7, b"short"), (1, b"\0" * 200), (4, (2**31, 7)), (5, 0.3)],
)
def test_a_damaged_profile_costs_the_profile_alone(tmp_path, colours, caplog, kind, value):
    """A TIFF may give its profile any type: SHORT, ASCII, DOUBLE, …"""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675] = value
    tags.tagtype[34675] = kind
    Image.fromarray(colours).save(tmp_path / "a.tif", tiffinfo=tags)
    picture = images.read_image(tmp_path / "a.tif")
    assert np.array_equal(as_bytes(picture.pixels), colours) and picture.icc_profile is None
    assert "its colour profile is damaged" in caplog.text
    Image.fromarray(colours[:, :, 0]).save(tmp_path / "mask.tif", tiffinfo=tags)
    assert np.array_equal(as_bytes(images.read_mask(tmp_path / "mask.tif"))[:, :, 0], colours[:, :, 0])


@pytest.mark.parametrize("exif", [b"garbage", b"MM\0*\0\0\xff\xff", b"II*\0\x08\0\0\0\x09\0\x12"])
def test_damaged_exif_costs_the_orientation_alone(tmp_path, colours, exif):
    Image.fromarray(colours).save(tmp_path / "a.png", exif=b"Exif\0\0" + exif)
    picture = images.read_image(tmp_path / "a.png")
    assert np.array_equal(as_bytes(picture.pixels), colours) and not picture.turned


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, colours, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_bytes(images.read_image(tmp_path / "a.png").pixels), colours)


SAVED = {
    "PNG": {}, "JPEG": {}, "WEBP": {}, "TIFF": {}, "BMP": {}, "GIF": {}, "PPM": {}, "JPEG2000": {}, "AVIF": {},
    "MPO": {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]},
}  # fmt: skip


@pytest.mark.parametrize("kind, mode", [*((kind, "RGB") for kind in SAVED), ("JPEG", "CMYK"), ("TIFF", "CMYK")])
def test_damage_of_any_kind_is_the_files_fault(tmp_path, colours, kind, mode, caplog):
    """Bytes changed at random: the file is read, or an InputError names it. Pillow raises whatever it likes."""
    caplog.set_level(logging.CRITICAL)
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(buffer, kind, icc_profile=profile(), **SAVED[kind])
    whole, chance, path, refused = buffer.getvalue(), random.Random(0), tmp_path / "a.png", 0
    for _ in range(60):
        damaged = bytearray(whole[: chance.choice([None, None, chance.randrange(len(whole))])])
        for _ in range(chance.choice([1, 3, 9])):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 200))] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(damaged)
        for read in (images.read_image, images.open_mask):
            try:
                read(path)
            except InputError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused


def test_what_libtiff_says_does_not_reach_stderr(tmp_path, colours, capfd):
    Image.fromarray(colours).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    damaged = bytearray((tmp_path / "a.tif").read_bytes())
    damaged[8:60] = b"\xff" * 52
    (tmp_path / "a.tif").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged"):
        images.read_image(tmp_path / "a.tif")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_pillow_images_are_what_the_tensors_are(tmp_path, colours):
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    alpha = Image.fromarray(np.dstack([colours, colours[:, :, :1]]))
    for name, image in (("a.png", Image.fromarray(colours)), ("deep.png", Image.fromarray(deep)), ("alpha.png", alpha)):
        path = tmp_path / name
        image.save(path)
        picture, mask = images.open_picture(path), images.open_mask(path)
        assert (picture.mode, mask.mode) == ("RGB", "L")
        assert np.array_equal(np.asarray(picture), as_bytes(images.read_image(path).pixels))
        assert np.array_equal(np.asarray(mask), as_bytes(images.read_mask(path))[:, :, 0])


def test_a_jpeg_may_be_read_smaller(tmp_path):
    Image.new("RGB", (640, 400), "teal").save(tmp_path / "a.jpg")
    assert images.open_picture(tmp_path / "a.jpg").size == (640, 400)
    small = images.open_picture(tmp_path / "a.jpg", least_side=90)
    assert small.size == (160, 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 400), "teal").save(tmp_path / "turned.jpg", exif=exif)
    assert images.open_picture(tmp_path / "turned.jpg", least_side=90).size == (100, 160)


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


def test_comparison_sheet_shows_every_panel_at_one_scale():
    red, mask, green = torch.zeros(1, 3, 20, 40), torch.ones(1, 1, 40, 80), torch.zeros(1, 3, 10, 20)
    red[:, 0], green[:, 1] = 1, 1
    rows = [[("composite", red), ("mask", mask)], [("a label much too long for its picture " * 3, green)]]
    sheet = images.comparison_sheet(rows, side=128, title="picture.png")
    margin, caption = 8, 26
    first = margin + caption + caption  # below the title and the first row's captions
    second = first + 64 + margin + caption
    assert sheet.shape == (1, 3, second + 64 + margin, margin + 2 * (128 + margin))
    for colour, top, left in (
        ((1, 0, 0), first, margin),
        ((1, 1, 1), first, 128 + 2 * margin),
        ((0, 1, 0), second, margin),
    ):
        shown = (sheet[0] == torch.tensor(colour).view(3, 1, 1)).all(dim=0)
        assert shown[top : top + 64, left : left + 128].all()
        assert colour == (1, 1, 1) or shown.sum() == 128 * 64  # and nowhere else
    dark = (sheet[0].amax(dim=0) < 0.5)[:, : margin + 128]
    for top in (margin, first - caption, second - caption):  # the title, and a caption above each picture
        assert 20 < dark[top : top + caption].sum() < 1500


@pytest.mark.parametrize("title", ["two\nlines", "not\udcff UTF-8", "\x1b[31m"])
def test_a_sheet_of_any_name(title):
    assert images.comparison_sheet([[(title, torch.zeros(1, 3, 8, 8))]], 64, title).isfinite().all()
