"""What is wrong with a picture file is said, and nothing else is harmed."""

import io
import logging
import os
import random
import socket
import sys

import numpy as np
import pytest
from picture_files import HEIGHT, WIDTH, as_bytes, profile
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from diffharmony_models.errors import InputError
from diffharmony_models.files import decoding, images, opening


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
    "huge": (lambda path: path.touch() or os.truncate(path, opening.MAX_BYTES + 1), "too large"),
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
        for read in (images.read_image, decoding.open_mask):
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
