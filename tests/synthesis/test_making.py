"""make-composites on small drawn photos: what is written, that light is shared, and that a stopped run goes on."""

import json
import shutil

import numpy as np
import pytest
import training_runs as runs
from drawn import build, files, read
from PIL import Image
from scipy import ndimage

from diffharmony_models.files import iharmony
from diffharmony_models.synthesis import composites


def test_layout_and_split(index, tmp_path):
    out = tmp_path / "out"
    rows, failures = build(out, index, index.parent / "unmasked.jsonl")
    assert not failures and len(rows) == 2 * 16
    scenes = {"train": set(), "test": set()}
    for split in scenes:
        triples = iharmony.pairs(out, f"IHD_{split}.txt")
        assert triples
        for triple in triples:
            mask = np.asarray(Image.open(triple.mask))
            assert set(np.unique(mask)) == {0, 255} and triple.real.is_file()
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert manifest == rows
    for row in manifest:
        assert row["kind"] in composites.KINDS and row["kind"] != "none" and 0 < row["psnr"] < 70
        assert row["composite"] in (out / f"IHD_{row['split']}.txt").read_text().split()
        assert all((out / row[name]).is_file() for name in ("composite", "mask", "real", "photo"))
        scenes[row["split"]].add((row["source"], row["group"]))
        squares = (read(out / row["composite"]) - read(out / row["real"])) ** 2
        inside = np.asarray(Image.open(out / row["mask"])) > 0
        assert squares[inside].mean() == pytest.approx(row["fmse"], rel=0.1, abs=30)  # JPEG
        assert inside.mean() == pytest.approx(row["area"], abs=1e-3)
    assert not scenes["train"] & scenes["test"] and len(scenes["train"] | scenes["test"]) == 6 + 4
    assert {row["subset"] for row in rows} == {"drawn", "bare-ones"}
    assert {row["licence"] for row in rows if row["subset"] == "drawn"} == {"CC0"}
    assert {row["label"] for row in rows if row["subset"] == "bare-ones"} == {None}
    assert np.abs(read(out / "drawn/photos/photo-3.jpg") - read(index.parent / "photo_3.png")).mean() < 4  # JPEG


def test_the_light_is_shared_and_each_composite_has_its_own(index, tmp_path):
    """The real pictures have looks of their own, and so have their backgrounds, which the composites share."""
    rows, _ = build(tmp_path, index)
    reals = {row["real"] for row in rows}
    assert len(reals) == len(rows)
    moved = []
    for row in rows:
        composite, real, photo = (read(tmp_path / row[name]) for name in ("composite", "real", "photo"))
        far = ndimage.binary_dilation(np.asarray(Image.open(tmp_path / row["mask"])) > 0, iterations=9)
        assert np.abs(composite - real)[~far].mean() < 8  # but for what JPEG does
        moved.append(np.abs(real - photo)[~far].mean() > 4)
    assert 0.4 < np.mean(moved) < 0.95


@pytest.mark.slow
def test_workers_and_stops_change_nothing(index, tmp_path):
    more = (index, index.parent / "unmasked.jsonl")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    build(whole, *more)
    shutil.copytree(whole, stopped)
    kept, *lost = sorted(stopped.glob("*/composite_images/*.jpg"))
    for path in (*lost[::3], stopped / "manifest.jsonl", *stopped.glob("*.txt")):
        path.unlink()
    (kept.parent / f".{kept.name}.123.part").write_bytes(b"half")
    stamp = kept.stat().st_mtime_ns
    build(stopped, *more, processes=2)
    assert kept.stat().st_mtime_ns == stamp
    assert files(stopped) == files(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(index, tmp_path):
    """Killed in its first file, in one in the middle, and in a list."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(output):
        more = ("--workers", "1", "--test-share", "0.3", "--per-mask", "2", "--index", str(index))
        return ["make-composites", str(output), *more]

    assert runs.run(command(whole), tmp_path / "stderr") == 0
    number = len(files(whole))
    for die in ("file 1", "file 20", f"file {number - 20 - 1}"):
        assert runs.run(command(killed), tmp_path / "stderr", die) == -9
        assert list(killed.rglob(".*.part"))
    assert runs.run(command(killed), tmp_path / "stderr") == 0
    assert files(killed) == files(whole)


@pytest.mark.slow
def test_a_full_disk_is_one_line(index, tmp_path):
    more = ("--workers", "2", "--index", str(index))
    assert runs.run(["make-composites", str(tmp_path / "out"), *more], tmp_path / "stderr", file_limit=1500) == 2
    error = [line for line in (tmp_path / "stderr").read_text().splitlines() if line and "photo/s" not in line]
    assert len(error) == 1 and error[0].startswith("error: ") and "photo-" in error[0]
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_jpeg_is_without_chroma_subsampling(index, tmp_path):
    build(tmp_path, index, per_mask=1)
    for triple in iharmony.pairs(tmp_path, "IHD_train.txt"):
        with Image.open(triple.composite) as file:
            assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3


FOREIGN = {
    "no JSON": "text",
    "a list": "[]",
    "deep": "[" * 100_000,
    "half a row": '{"composite": "drawn/composite_images/photo-1-1-1_1_1.jpg"}',
    "a number as text": None,
    "of another place": None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_composite_that_is_not_its_own_is_made_again(index, tmp_path, kind):
    out = tmp_path / "out"
    build(out, index)
    before = files(out)
    path = out / "drawn/composite_images/photo-1-1-1_1_1.jpg"
    row = json.loads(Image.open(path).info["comment"])
    comment = FOREIGN[kind]
    if kind == "a number as text":
        comment = json.dumps({**row, "psnr": "high"})
    if kind == "of another place":
        comment = json.dumps({**row, "composite": "../../other/composite_images/photo-1-1-1_1_1.jpg"})
    Image.new("RGB", (64, 48)).save(path, comment=comment.encode()[:65_000])
    build(out, index)
    assert files(out) == before


def test_what_is_no_picture_is_not_taken_for_one(index, tmp_path):
    out = tmp_path / "out"
    build(out, index)
    before = files(out)
    for name in (
        "composite_images/photo-1-1-1_1_1.jpg",
        "masks/photo-1-1-1_1.png",
        "real_images/photo-1-1-1.jpg",
        "photos/photo-1.jpg",
    ):
        (out / "drawn" / name).write_bytes(b"")
    build(out, index)
    assert files(out) == before
