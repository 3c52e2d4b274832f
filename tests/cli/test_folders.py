"""`harmonize`, folders of pictures."""

import os
import sys
from pathlib import Path

import pytest
from command_line import HEIGHT, WIDTH, command, make_pair, pixels_of, refused, said
from PIL import Image, TiffImagePlugin

from diffharmony_models.files import images
from diffharmony_models.settings import Settings


@pytest.fixture
def folders(tmp_path) -> Path:
    """Three good pairs, one of them with iHarmony4's names, and four composites that cannot be harmonized."""
    make_pair(tmp_path, "a", number=1)
    make_pair(tmp_path, "b.c", number=2, extension="jpg")
    make_pair(tmp_path, "c100_7_1", "c100_7", number=3, extension="bmp")
    make_pair(tmp_path, "cut")
    (tmp_path / "composites" / "cut.png").write_bytes((tmp_path / "composites" / "cut.png").read_bytes()[:400])
    make_pair(tmp_path, "small")
    Image.new("L", (50, 50), 255).save(tmp_path / "masks" / "small.png")
    make_pair(tmp_path, "lonely")[1].unlink()
    make_pair(tmp_path, "twice")
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "masks" / "twice.bmp")
    (tmp_path / "composites" / "notes.txt").write_text("no picture")
    return tmp_path


def test_folder_goes_on_says_what_failed_and_skips_what_is_done(folders, weights, capsys):
    arguments = ["harmonize", folders / "composites", folders / "masks", folders / "out", "--checkpoint", weights]
    assert command(*arguments) == 2
    text = said(capsys)
    assert sorted(os.listdir(folders / "out")) == ["a.png", "b.c.jpg", "c100_7_1.png"]
    assert "3 harmonized, 0 were there already, 4 failed" in text
    for name, why in (
        ("cut.png", "damaged"),
        ("small.png", "50x50"),
        ("lonely.png", "no mask"),
        ("twice.png", "several masks"),
    ):
        assert [line for line in text.splitlines() if line.startswith(f"  {name}: ") and why in line], text

    (folders / "out" / "a.png").write_bytes(b"mine")
    (folders / "out" / "b.c.jpg").unlink()
    assert command(*arguments) == 2
    assert "1 harmonized, 2 were there already, 4 failed" in said(capsys)
    assert (folders / "out" / "a.png").read_bytes() == b"mine"

    assert command(*arguments, "--overwrite") == 2
    assert "3 harmonized" in said(capsys)
    assert pixels_of(folders / "out" / "a.png").shape == (HEIGHT, WIDTH, 3)


def test_each_picture_of_a_folder_has_its_own_noise(tmp_path, weights):
    for name in ("a", "b"):
        make_pair(tmp_path, name)  # the same picture under two names
    common = ["--checkpoint", weights, "--ending", "none", "--seed"]
    composites, masks = tmp_path / "composites", tmp_path / "masks"
    for folder in ("out", "again"):
        sheets = ["--compare", tmp_path / f"{folder}_sheets"]
        assert command("harmonize", composites, masks, tmp_path / folder, *common, 3, *sheets) == 0
        assert sorted(os.listdir(sheets[1])) == ["a.png", "b.png"]
    made = [[(tmp_path / folder / f"{name}.png").read_bytes() for name in "ab"] for folder in ("out", "again")]
    assert made[0] == made[1] and made[0][0] != made[0][1]
    seed = Settings(seed=3).for_picture("b").seed
    assert command("harmonize", composites / "b.png", masks / "b.png", tmp_path / "b.png", *common, seed) == 0
    assert (tmp_path / "b.png").read_bytes() == made[0][1]


def test_a_folder_that_is_done_needs_no_weights(tmp_path, weights, capsys):
    make_pair(tmp_path)
    arguments = ["harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--checkpoint"]
    assert command(*arguments, weights) == 0
    assert command(*arguments, tmp_path / "gone.safetensors") == 0
    assert "0 harmonized, 1 were there already, 0 failed" in said(capsys)


def test_names_that_would_meet_in_one_result(tmp_path, weights, capsys):
    make_pair(tmp_path, "a")
    make_pair(tmp_path, "a", extension="bmp")
    assert (
        command("harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--checkpoint", weights)
        == 2
    )
    assert "a.png: its result would have the name of that of a.bmp" in said(capsys)


def test_a_disk_that_takes_no_more_stops_the_folder(tmp_path, weights, capsys):
    resource = pytest.importorskip("resource")
    for name in "abc":
        make_pair(tmp_path, name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system refuses every larger file
    try:
        arguments = ["harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out"]
        assert command(*arguments, "--checkpoint", weights) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = said(capsys)
    assert "error: cannot write (File too large): " in text and "a.png" in text.splitlines()[-1]
    assert "b.png" not in text and "failed" not in text  # the others were not tried
    assert os.listdir(tmp_path / "out") == []


def short_profile(path: Path) -> None:
    """A TIFF whose colour profile is of type SHORT."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675] = 5
    tags.tagtype[34675] = 3
    with Image.open(path) as image:
        image.save(path.with_suffix(".tif"), tiffinfo=tags)
    path.unlink()


def test_one_pictures_fault_is_that_pictures(tmp_path, weights, capsys):
    """Even a fault of the program: it is named and counted, its traceback is shown, and the rest is done."""
    for name in "abcde":
        make_pair(tmp_path, name)
    composites, out = tmp_path / "composites", tmp_path / "out"
    short_profile(composites / "b.png")
    (composites / "c.png").unlink()
    os.mkfifo(composites / "c.png")
    arguments = ["harmonize", composites, tmp_path / "masks", out, "--checkpoint", weights]
    with pytest.MonkeyPatch.context() as patch:
        read = images.read_mask

        def broken(path):
            return {}["no such key"] if path.stem == "d" else read(path)

        patch.setattr(images, "read_mask", broken)
        assert command(*arguments) == 2
    text = capsys.readouterr().err
    assert sorted(os.listdir(out)) == ["a.png", "b.png", "e.png"]
    assert "3 harmonized, 0 were there already, 2 failed" in text
    assert "  c.png: " in text and "not a regular file" in text
    assert "  d.png: KeyError: 'no such key'" in text and text.count("Traceback") == 1


def test_what_is_no_result_is_not_taken_for_one(tmp_path, weights, capsys):
    for name in "abc":
        make_pair(tmp_path, name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").touch()
    (out / "b.png").mkdir()
    (out / "c.png").symlink_to(out / "gone.png")
    assert command("harmonize", tmp_path / "composites", tmp_path / "masks", out, "--checkpoint", weights) == 2
    text = said(capsys)
    assert "2 harmonized, 0 were there already, 1 failed" in text and "b.png is a folder" in text
    assert pixels_of(out / "a.png").shape == pixels_of(out / "c.png").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names are Unicode")
def test_names_need_not_be_utf8(tmp_path, weights, capsys):
    for name in (os.fsdecode(b"\xff\xe9"), "two\nlines", "\x1b[31mred"):
        make_pair(tmp_path, name)
    arguments = [tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--compare", tmp_path / "sheets"]
    assert command("harmonize", *arguments, "--checkpoint", weights) == 0
    assert len(os.listdir(tmp_path / "out")) == len(os.listdir(tmp_path / "sheets")) == 3
    said(capsys)
    for path in sorted((tmp_path / "composites").iterdir()):
        path.write_text("no picture")
        text = refused(capsys, "harmonize", path, path, tmp_path / "out.png", "--checkpoint", weights)
        text.encode("utf-8")  # nothing that a terminal could not show
    assert command("harmonize", *arguments[:2], tmp_path / "again", "--checkpoint", weights) == 2
    text = said(capsys)
    assert "  \\udcff\\udce9.png: " in text and "\\x1b[31mred" in text and "\x1b[31m" not in text
