"""make-composites on small drawn photos: what is written, that light is shared, and that a stopped run goes on."""

import argparse
import json
import shutil

import numpy as np
import pytest
import training_runs as runs
from PIL import Image
from scipy import ndimage

from diffharmony_models.__main__ import main
from diffharmony_models.files import iharmony
from diffharmony_models.synthesis import composites, dataset, regions, sources
from diffharmony_models.training import data

HEIGHT, WIDTH = 48, 64


def _photo(seed, height=HEIGHT, width=WIDTH):
    """Coloured discs with some texture on a gradient: uint8 (H, W, 3), and the mask of the largest disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = rng.uniform(0.2, 0.7, 3) + (x * rng.uniform(-0.2, 0.2) + y * rng.uniform(-0.2, 0.2))[..., None]
    for radius in (0.1, 0.14, 0.22):
        mask = (x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.2, 0.5)) ** 2 < radius**2
        picture[mask] = rng.uniform(0.2, 0.8, 3) + 0.1 * np.sin(40 * x[mask] + 3)[:, None]
    picture += rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).astype(np.uint8), mask


@pytest.fixture
def index(tmp_path):
    """Twelve photos of six scenes with a mask each, and four photos without."""
    (tmp_path / "in").mkdir()
    rows, bare = [], []
    for number in range(16):
        picture, mask = _photo(number)
        Image.fromarray(picture).save(tmp_path / "in" / f"photo_{number}.png")
        if number >= 12:
            bare.append({"image": f"photo_{number}.png", "source": "bare_ones"})
            continue
        Image.fromarray(mask).save(tmp_path / "in" / f"photo_{number}_m.png")
        rows.append(
            {
                "image": f"photo_{number}.png",
                "mask": f"photo_{number}_m.png",
                "source": "drawn",
                "group": f"scene{number // 2}",
                "label": "disc",
                "licence": "CC0",
            }
        )
    for name, lines in (("index.jsonl", rows), ("unmasked.jsonl", bare)):
        (tmp_path / "in" / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path / "in" / "index.jsonl"


def _args(output, *more):
    parser = argparse.ArgumentParser()
    dataset.add_arguments(parser)
    return parser.parse_args([str(output), "--workers", "1", "--test-share", "0.3", "--per-mask", "2", *map(str, more)])


def _build(output, *more):
    return dataset.build(_args(output, *more))


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_layout_and_split(index, tmp_path):
    out = tmp_path / "out"
    rows, failures = _build(out, "--index", index, "--unmasked", index.parent / "unmasked.jsonl")
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
        squares = (_read(out / row["composite"]) - _read(out / row["real"])) ** 2
        inside = np.asarray(Image.open(out / row["mask"])) > 0
        assert squares[inside].mean() == pytest.approx(row["fmse"], rel=0.1, abs=30)  # JPEG
        assert inside.mean() == pytest.approx(row["area"], abs=1e-3)
    assert not scenes["train"] & scenes["test"] and len(scenes["train"] | scenes["test"]) == 6 + 4
    assert {row["subset"] for row in rows} == {"drawn", "bare-ones"}
    assert {row["licence"] for row in rows if row["subset"] == "drawn"} == {"CC0"}
    assert {row["label"] for row in rows if row["subset"] == "bare-ones"} == {None}
    assert np.abs(_read(out / "drawn/photos/photo-3.jpg") - _read(index.parent / "photo_3.png")).mean() < 4  # JPEG


def test_the_light_is_shared_and_each_composite_has_its_own(index, tmp_path):
    """The real pictures have looks of their own, and so have their backgrounds, which the composites share."""
    rows, _ = _build(tmp_path, "--index", index)
    reals = {row["real"] for row in rows}
    assert len(reals) == len(rows)
    moved = []
    for row in rows:
        composite, real, photo = (_read(tmp_path / row[name]) for name in ("composite", "real", "photo"))
        far = ndimage.binary_dilation(np.asarray(Image.open(tmp_path / row["mask"])) > 0, iterations=9)
        assert np.abs(composite - real)[~far].mean() < 8  # but for what JPEG does
        moved.append(np.abs(real - photo)[~far].mean() > 4)
    assert 0.4 < np.mean(moved) < 0.95


def test_references_are_of_another_scene_on_the_same_side(index):
    entries = sources.read_index(index)
    pools = sources.reference_pools(entries, 0, 0.3)
    rng = np.random.default_rng(0)
    lent = 0
    for entry in entries:
        where = sources.side(entry, 0, 0.3)
        for other in filter(None, (sources.pick_reference(entry, where, pools, rng) for _ in range(20))):
            assert sources.side(other, 0, 0.3) == where and other.group != entry.group
            lent += 1
    assert lent > 100


def test_a_share_of_local_light(index, tmp_path):
    for share in (0, 1):
        rows, _ = _build(tmp_path / str(share), "--index", index, "--local-share", share)
        assert {row["local"] for row in rows} == {bool(share)}


@pytest.mark.slow
def test_workers_and_stops_change_nothing(index, tmp_path):
    more = ("--index", index, "--unmasked", index.parent / "unmasked.jsonl")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    _build(whole, *more)
    shutil.copytree(whole, stopped)
    kept, *lost = sorted(stopped.glob("*/composite_images/*.jpg"))
    for path in (*lost[::3], stopped / "manifest.jsonl", *stopped.glob("*.txt")):
        path.unlink()
    (kept.parent / f".{kept.name}.123.part").write_bytes(b"half")
    stamp = kept.stat().st_mtime_ns
    _build(stopped, *more, "--workers", 2)
    assert kept.stat().st_mtime_ns == stamp
    assert _files(stopped) == _files(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(index, tmp_path):
    """Killed in its first file, in one in the middle, and in a list."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(output):
        more = ("--workers", "1", "--test-share", "0.3", "--per-mask", "2", "--index", str(index))
        return ["make-composites", str(output), *more]

    assert runs.run(command(whole), tmp_path / "stderr") == 0
    number = len(_files(whole))
    for die in ("file 1", "file 20", f"file {number - 20 - 1}"):
        assert runs.run(command(killed), tmp_path / "stderr", die) == -9
        assert list(killed.rglob(".*.part"))
    assert runs.run(command(killed), tmp_path / "stderr") == 0
    assert _files(killed) == _files(whole)


@pytest.mark.slow
def test_a_full_disk_is_one_line(index, tmp_path):
    more = ("--workers", "2", "--index", str(index))
    assert runs.run(["make-composites", str(tmp_path / "out"), *more], tmp_path / "stderr", file_limit=1500) == 2
    error = [line for line in (tmp_path / "stderr").read_text().splitlines() if line and "photo/s" not in line]
    assert len(error) == 1 and error[0].startswith("error: ") and "photo-" in error[0]
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_jpeg_is_without_chroma_subsampling(index, tmp_path):
    _build(tmp_path, "--index", index, "--per-mask", 1)
    for triple in iharmony.pairs(tmp_path, "IHD_train.txt"):
        with Image.open(triple.composite) as file:
            assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3


def test_folders_and_size(index, tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    (photos / "walk").mkdir(parents=True), (masks / "walk").mkdir(parents=True)
    for number, name in enumerate(("a_b", "walk/c", "walk/d")):
        picture, mask = _photo(number, 96, 128)
        Image.fromarray(picture).save(photos / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{name}{'' if number else '_0'}.png")
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(masks / "a_b_1.png")
    entries = sources.read_folders(photos, masks)
    assert sorted(e.group for e in entries) == ["a_b", "a_b", "walk", "walk"]
    rows, failures = _build(tmp_path / "out", "--photos", photos, "--masks", masks, "--size", 48, "--test-share", 0)
    assert len(rows) == 6 and len(failures) == 1 and "covers 0.0%" in failures[0]
    assert Image.open(tmp_path / "out" / rows[0]["composite"]).size == (64, 48)
    assert rows[0]["composite"] == "own/composite_images/a-b-1-1_1_1.jpg"


def test_bad_input(index, tmp_path, capsys):
    out = tmp_path / "out"
    (index.parent / "photo_0.png").write_bytes(b"no picture")
    Image.new("L", (20, 60), 255).save(index.parent / "photo_2_m.png")
    rows, failures = _build(out, "--index", index, "--per-mask", 1)
    assert (
        len(rows) == 10
        and any("photo_0.png" in f for f in failures)
        and any("20x60" in f and "64x48" in f for f in failures)
    )
    for arguments, words in (
        (["--index", str(index), "--seed", "1"], "was begun with"),
        (["--index", str(tmp_path / "none.jsonl")], "no index"),
        (["--masks", str(tmp_path)], "give either --index or --photos"),
        (["--index", str(index), "--local-share", "2"], "--local-share: must be a number from 0 to 1"),
    ):
        assert main(["make-composites", str(out), *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        '{"mask": 1}',
        '{"image": ""}',
        '{"image": 5}',
        '{"image": "a.png", "mask": 5}',
        '{"image": "a.png", "label": {}}',
        '{"image": "a.png", "group": ["a"]}',
        '["a.png"]',
        "a.png",
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_bad_line_of_an_index_is_named(tmp_path, capsys, line):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"image": "a.png"}\n' + line.encode("latin-1"))
    for arguments in (
        ["make-composites", str(tmp_path / "out"), "--index", str(path)],
        ["train-autoencoder", str(path), "--output", str(tmp_path / "run")],
    ):
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and ("broken.jsonl, line 2" in lines[0] or "UTF-8" in lines[0]) and len(lines[0]) < 400


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
    more = ("--unmasked", index.parent / "unmasked.jsonl", "--per-mask", 1)
    rows, _ = _build(tmp_path / "out", "--index", index, *more)
    assert {row["photo"].rpartition("/")[2] for row in rows} >= {
        f"photo-{number}.jpg" for number in (*range(1, 12), 14)
    }


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
    _build(out, "--index", index)
    before = _files(out)
    path = out / "drawn/composite_images/photo-1-1-1_1_1.jpg"
    row = json.loads(Image.open(path).info["comment"])
    comment = FOREIGN[kind]
    if kind == "a number as text":
        comment = json.dumps({**row, "psnr": "high"})
    if kind == "of another place":
        comment = json.dumps({**row, "composite": "../../other/composite_images/photo-1-1-1_1_1.jpg"})
    Image.new("RGB", (64, 48)).save(path, comment=comment.encode()[:65_000])
    _build(out, "--index", index)
    assert _files(out) == before


def test_the_autoencoder_never_sees_a_photo_that_is_kept_for_testing(index, tmp_path):
    """Without being told the seed and the share again."""
    out = tmp_path / "out"
    _build(out, "--index", index, "--seed", 3)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    test, train = ({out / row["photo"] for row in rows if row["split"] == split} for split in ("test", "train"))
    assert test and train and data.training_photos([out]) == sorted(train)
    # The same photos from their own place: those of the test side stay out of them, too.
    both = {path.name.replace("_", "-") for path in data.training_photos([out, index]) if path not in train}
    assert both == {path.with_suffix(".png").name for path in train}
    everything = data.training_photos([index])
    assert len(everything) == 12


def test_a_data_set_that_names_a_photo_twice_keeps_it_for_testing(index, tmp_path):
    out = tmp_path / "out"
    _build(out, "--index", index)
    lists = {split: (out / name).read_text() for split, name in sources.LISTS.items()}
    (out / "settings.json").unlink(), (out / "manifest.jsonl").unlink()  # as in iHarmony4 itself
    (out / "IHD_train.txt").write_text(lists["train"] + lists["test"])
    test = {triple.real for triple in iharmony.pairs(out, "IHD_test.txt")}
    assert test and not test & set(data.training_photos([out]))


BAD_SETTINGS = {
    "cut short": '{"seed": 0, "test_sh',
    "a list": "[]",
    "deep": "[" * 100_000,
    "nothing": "{}",
    "a share of text": '{"seed": 0, "test_share": "x"}',
    "a share of 2": '{"seed": 0, "test_share": 2}',
    "an endless share": '{"seed": 0, "test_share": 1e999}',
    "a long seed": '{"seed": ' + "9" * 5000 + ', "test_share": 0.1}',
    "a seed below 0": '{"seed": -1, "test_share": 0.1}',
    "a seed that is true": '{"seed": true, "test_share": 0.1}',
}


@pytest.mark.parametrize("text", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_one_line(index, tmp_path, capsys, text):
    out = tmp_path / "out"
    _build(out, "--index", index, "--per-mask", 1)
    (out / "settings.json").write_text(text)
    capsys.readouterr()
    for arguments in (
        ["make-composites", str(out), "--index", str(index)],
        ["train-autoencoder", str(out), "--output", str(tmp_path / "run")],
    ):
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "settings.json" in lines[0] and len(lines[0]) < 500
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_finished_is_named(index, tmp_path, capsys):
    out = tmp_path / "out"
    _build(out, "--index", index, "--per-mask", 1)
    (out / "IHD_train.txt").unlink()
    assert main(["train-autoencoder", str(out), "--output", str(tmp_path / "run")]) == 2
    assert "make-composites again" in capsys.readouterr().err


def test_one_photos_fault_is_that_photos(index, tmp_path, capsys, monkeypatch):
    """Even a fault of the program: it is named, its traceback is shown, the rest is done, and the exit code tells."""
    make = composites.make
    bad = _read(index.parent / "photo_3.png")[5, 5].tolist()

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


def test_what_is_no_picture_is_not_taken_for_one(index, tmp_path):
    out = tmp_path / "out"
    _build(out, "--index", index)
    before = _files(out)
    for name in (
        "composite_images/photo-1-1-1_1_1.jpg",
        "masks/photo-1-1-1_1.png",
        "real_images/photo-1-1-1.jpg",
        "photos/photo-1.jpg",
    ):
        (out / "drawn" / name).write_bytes(b"")
    _build(out, "--index", index)
    assert _files(out) == before


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


def test_a_segmented_foreground_counts_half_of_a_given_one(index, tmp_path):
    """And every foreground once, with its photo as it was, however many composites there are of it."""
    _build(tmp_path, "--index", index, "--unmasked", index.parent / "unmasked.jsonl", "--test-share", 0)
    samples = data.Foregrounds(tmp_path, "IHD_train.txt", 64)
    assert len(samples) == 16
    weights = np.diff(samples.cumulative, prepend=0)
    given, segmented = 2 * 12**-0.5, 4**-0.5
    assert sorted(weights / weights.min()) == pytest.approx([1] * 4 + [given / segmented] * 12)


BAD_MANIFESTS = {
    "no JSON": "text",
    "a list": "[]",
    "half a row": '{"composite": "a.jpg"}',
    "a number for a photo": '{"composite": "a.jpg", "label": null, "photo": 5}',
    "a text for a number": '{"composite": "a.jpg", "label": null, "foreground": "1"}',
    "deep": "[" * 100_000,
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("line", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_bad_manifest_is_one_line(tmp_path, capsys, line):
    data_set = runs.make_dataset(tmp_path / "data")
    (data_set / "manifest.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    for arguments in (["train-color-regressor", str(data_set)], ["train-autoencoder", str(data_set)]):
        assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "manifest.jsonl, line 1" in lines[0] and len(lines[0]) < 500


def test_regions_are_connected_and_of_fair_size():
    from scipy.ndimage import label

    found = 0
    for seed in range(5):
        picture = _photo(seed, 150, 200)[0].astype(np.float32) / 255
        for mask in regions.segment(picture, np.random.default_rng(seed), 2):
            found += 1
            assert mask.shape == (150, 200) and mask.dtype == bool
            assert regions.AREA[0] <= mask.mean() <= regions.AREA[1]
            assert label(mask)[1] == 1
    assert found >= 5
