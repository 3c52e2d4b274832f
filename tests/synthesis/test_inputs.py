"""make-composites on what cannot be used: it is named, and the rest is done."""

import numpy as np
import pytest
from drawn import HEIGHT, WIDTH, build, photo, read
from PIL import Image

from diffharmony_models.__main__ import main
from diffharmony_models.synthesis import composites, dataset, sources


def test_bad_input(index, tmp_path, capsys):
    out = tmp_path / "out"
    (index.parent / "photo_0.png").write_bytes(b"no picture")
    Image.new("L", (20, 60), 255).save(index.parent / "photo_2_m.png")
    rows, failures = build(out, index, per_mask=1)
    assert (
        len(rows) == 10
        and any("photo_0.png" in f for f in failures)
        and any("20x60" in f and "64x48" in f for f in failures)
    )
    for arguments, words in (
        (["--index", str(index), "--seed", "1"], "was begun with"),
        (["--index", str(tmp_path / "none.jsonl")], "no index"),
        (["--masks", str(tmp_path)], "give either --index or --photos"),
        (["--index", str(index), "--test-share", "1"], "--test-share: must be a number from 0 below 1"),
    ):
        assert main(["make-composites", str(out), *arguments]) == 2
        assert words in capsys.readouterr().err


ODD = {
    "one pixel": Image.new("RGB", (1, 1)),
    "one pixel wide": Image.new("RGB", (1, 300), "red"),
    "one pixel high": Image.new("RGB", (300, 1), "red"),
    "all one colour": Image.new("RGB", (64, 48), "red"),
    "deep": Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 20),
    "a cut-out": Image.new("RGBA", (64, 48), (200, 30, 30, 0)),
}


@pytest.mark.parametrize("picture", ODD.values(), ids=ODD)
def test_one_odd_photo_is_its_own_fault(index, tmp_path, picture):
    """Whether it has a mask or not, the others are done."""
    picture.save(index.parent / "photo_0.png")
    Image.new("L", picture.size, 255).save(index.parent / "photo_0_m.png")
    picture.save(index.parent / "photo_13.png")
    rows, _ = build(tmp_path / "out", index, index.parent / "unmasked.jsonl", per_mask=1)
    assert {row["photo"].rpartition("/")[2] for row in rows} >= {
        f"photo-{number}.jpg" for number in (*range(1, 12), 14)
    }


def test_one_photos_fault_is_that_photos(index, tmp_path, capsys, monkeypatch):
    """Even a fault of the program: it is named, its traceback is shown, the rest is done, and the exit code tells."""
    make = composites.make
    bad = read(index.parent / "photo_3.png")[5, 5].tolist()

    def broken(photo, *arguments, **options):
        if (photo[0, :, 5, 5] * 255).round().int().tolist() == bad:
            return {}["no such key"]
        return make(photo, *arguments, **options)

    monkeypatch.setattr(composites, "make", broken)
    arguments = ["make-composites", str(tmp_path / "out"), "--index", str(index), "--workers", "1", "--per-mask", "1"]
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert "foregrounds left out: 1" in text and text.count("Traceback") == 1
    assert "photo_3.png: KeyError: 'no such key'" in text
    assert len(list((tmp_path / "out").glob("drawn/composite_images/*.jpg"))) == 11


def test_what_only_fits_badly_is_no_fault(index, tmp_path, capsys):
    Image.new("L", (WIDTH, HEIGHT)).save(index.parent / "photo_0_m.png")  # no foreground
    arguments = ["make-composites", str(tmp_path / "out"), "--index", str(index), "--workers", "1", "--per-mask", "1"]
    assert main(arguments) == 0
    assert "covers 0.0%" in capsys.readouterr().err
    (index.parent / "photo_0.png").unlink()
    assert main(arguments) == 2
    assert "photo_0.png" in capsys.readouterr().err


BAD_LINES = {
    "no JSON": b"text",
    "no object": b'"image"',
    "no image": b'{"mask": "a.png"}',
    "a number for a name": b'{"image": 5}',
    "a number for a mask": b'{"image": "a.png", "mask": 5}',
    "a list for a label": b'{"image": "a.png", "label": ["x"]}',
    "an object for a group": b'{"image": "a.png", "group": {}}',
    "deep": b"[" * 100_000,
    "5,000 digits": b'{"image": ' + b"9" * 5000 + b"}",
    "no UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_of_an_index(tmp_path, capsys, line):
    (tmp_path / "index.jsonl").write_bytes(b'{"image": "a.png", "mask": null, "group": "7"}\n' + line)
    assert main(["make-composites", str(tmp_path / "out"), "--index", str(tmp_path / "index.jsonl")]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith(f"error: {tmp_path / 'index.jsonl'}") and len(text) < 500
    assert not (tmp_path / "out").exists()


def test_folders_and_size(index, tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    (photos / "walk").mkdir(parents=True), (masks / "walk").mkdir(parents=True)
    for number, name in enumerate(("a_b", "walk/c", "walk/d")):
        picture, mask = photo(number, 96, 128)
        Image.fromarray(picture).save(photos / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{name}{'' if number else '_0'}.png")
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(masks / "a_b_1.png")
    entries = sources.read_folders(photos, masks)
    assert sorted(e.group for e in entries) == ["a_b", "a_b", "walk", "walk"]
    settings = dataset.Settings(per_mask=2, size=48, test_share=0)
    rows, failures = dataset.build(entries, tmp_path / "out", settings)
    assert len(rows) == 6 and len(failures) == 1 and "covers 0.0%" in failures[0]
    assert Image.open(tmp_path / "out" / rows[0]["composite"]).size == (64, 48)
    assert rows[0]["composite"] == "own/composite_images/a-b-1-1_1_1.jpg"
