"""`harmonize` with input that cannot be used."""

import os
from pathlib import Path

import pytest
from command_line import refused
from PIL import Image


def in_place(change):
    """A change to the files of the pair, before the ordinary command."""

    def make(folder, composite, mask):
        change(composite, mask)
        return [composite, mask, folder / "out.png"]

    return make


BAD_INPUT = {
    "no composite": (in_place(lambda composite, mask: composite.unlink()), "there is no such file"),
    "no mask": (in_place(lambda composite, mask: mask.unlink()), "there is no such file"),
    "text as composite": (in_place(lambda composite, mask: composite.write_text("hello")), "not a picture"),
    "cut composite": (
        in_place(lambda composite, mask: composite.write_bytes(composite.read_bytes()[:999])),
        "damaged or cut short",
    ),
    "an EPS by another name": (in_place(lambda composite, mask: eps(composite)), "not a picture"),
    "a pipe": (in_place(lambda composite, mask: composite.unlink() or os.mkfifo(composite)), "not a regular file"),
    "a device": (in_place(lambda composite, mask: mask.unlink() or mask.symlink_to("/dev/zero")), "not a regular file"),
    "a link to itself": (in_place(lambda composite, mask: mask.unlink() or mask.symlink_to(mask)), "no such file"),
    "a name too long": (lambda folder, composite, mask: [composite, "m" * 300, folder / "out.png"], "too long"),
    "a name with a null": (lambda folder, composite, mask: [composite, "m\0", folder / "out.png"], "no such file"),
    "an empty name": (lambda folder, composite, mask: ["", mask, folder / "out.png"], "is empty"),
    "an empty result's name": (lambda folder, composite, mask: [composite, mask, ""], "is empty"),
    "out is a link to itself": (
        lambda folder, composite, mask: [composite, mask, loop(folder / "out.png")],
        "out.png: cannot write there",
    ),
    "out in a link to itself": (
        lambda folder, composite, mask: [composite, mask, loop(folder / "loop") / "out.png"],
        "out.png: cannot write there",
    ),
    "a folder's out is a link to itself": (
        lambda folder, composite, mask: [composite.parent, mask.parent, loop(folder / "loop")],
        "must be a folder",
    ),
    "out's name is too long": (
        lambda folder, composite, mask: [composite, mask, folder / ("o" * 300 + ".png")],
        "cannot write there",
    ),
    "out is a pipe": (
        lambda folder, composite, mask: [composite, mask, os.mkfifo(folder / "out.png") or folder / "out.png"],
        "not a regular file",
    ),
    "cut mask": (in_place(lambda composite, mask: mask.write_bytes(mask.read_bytes()[:80])), "damaged or cut short"),
    "sizes differ": (in_place(lambda composite, mask: Image.new("L", (50, 40), 255).save(mask)), "100x72 but its mask"),
    "sizes differ by EXIF": (in_place(lambda composite, mask: turn(composite)), "EXIF"),
    "long and thin": (
        in_place(lambda composite, mask: [Image.new("L", (9000, 4), 255).save(path) for path in (composite, mask)]),
        "thin",
    ),
    "a folder and a mask": (
        lambda folder, composite, mask: [composite.parent, mask, folder / "out"],
        "folder of masks",
    ),
    "a composite and a folder": (
        lambda folder, composite, mask: [composite, mask.parent, folder / "out.png"],
        "is a folder",
    ),
    "folders and a file": (
        lambda folder, composite, mask: [composite.parent, mask.parent, folder / "out.png"],
        "must be a folder",
    ),
    "results among the inputs": (
        lambda folder, composite, mask: [composite.parent, mask.parent, composite.parent],
        "must differ",
    ),
    "masks among the composites": (
        lambda folder, composite, mask: [composite.parent, composite.parent, folder / "out"],
        "must differ",
    ),
    "an empty folder": (lambda folder, composite, mask: [empty(folder), mask.parent, folder / "out"], "no picture"),
    "out without extension": (lambda folder, composite, mask: [composite, mask, folder / "out"], ".png, .jpg or .webp"),
    "out of unknown extension": (
        lambda folder, composite, mask: [composite, mask, folder / "out.xyz"],
        ".png, .jpg or .webp",
    ),
    "out is the composite": (lambda folder, composite, mask: [composite, mask, composite], "over an input"),
    "out is a folder": (lambda folder, composite, mask: [composite, mask, empty(folder, "out.png")], "is a folder"),
    "out in a file": (lambda folder, composite, mask: [composite, mask, composite / "out.png"], "is a file"),
    "sheet of unknown extension": (
        lambda *paths: [*paths[1:], paths[0] / "out.png", "--compare", "sheet"],
        ".png, .jpg or .webp",
    ),
    "sheet is the result": (
        lambda *paths: [*paths[1:], paths[0] / "o.png", "--compare", paths[0] / "o.png"],
        "different names",
    ),
    "too large for WebP": (
        lambda *paths: [*paths[1:], paths[0] / "out.webp", "--output-size", "20000x10"],
        "write a .png",
    ),
    "unknown device": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--device", "abacus"], "there is cpu"),
    "absent device": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--device", "cuda:77"], "there is cpu"),
    "unknown dtype": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--dtype", "int8"], "bfloat16"),
    "no steps": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "0"], "from 1"),
    "half a step": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "2.5"], "whole number"),
    "low resolution": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "32"], "at least 64"),
    "absurd resolution": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "1000000"], "to 8192"),
    "odd square": (
        lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "100", "--shape", "square"],
        "multiple of 64",
    ),
    "huge output": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--output-size", "60000x60000"], "megapixels"),
    "absurd output size": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--output-size", "0x5"], "WIDTHxHEIGHT"),
    "negative feather": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--feather", "-3"], "from 0"),
    "a seed of 5,000 digits": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--seed", "1" * 5000], "whole number"),
    "other digits": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "\u0663"], "whole number"),
    "digits in groups": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "1_0"], "whole number"),
    "no number": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--feather", "nan"], "whole number"),
    "an option of two lines": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--a\nb"], "unrecognized arguments"),
    "unknown sampler": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--sampler", "heun"], "euler_ancestral"),
    "unknown option": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--magic"], "--magic"),
    "too few arguments": (lambda folder, composite, mask: [composite, mask], "OUT"),
}


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def eps(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path, "EPS")


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def empty(folder: Path, name: str = "empty") -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize("make, words", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(tmp_path, pair, weights, capsys, make, words):
    arguments = make(tmp_path, *pair)
    there = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert words in refused(capsys, "harmonize", "--checkpoint", weights, *arguments)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == there


def test_a_refused_write_leaves_nothing(tmp_path, pair, weights, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system refuses every larger file
    try:
        text = refused(capsys, "harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "out.png" in text and sorted(os.listdir(tmp_path)) == ["composites", "masks"]
