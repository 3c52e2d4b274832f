"""make-composites on small drawn photos: what is written, that only the foreground changes, and that a stopped run goes on."""

import argparse
import json

import numpy as np
import pytest
import training_runs as runs
from PIL import Image

from diffharmony_models import iharmony
from diffharmony_models.__main__ import main
from diffharmony_models.training import composites, data, looks, regions, sources

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
        rows.append({
            "image": f"photo_{number}.png", "mask": f"photo_{number}_m.png", "source": "drawn", "group": f"scene{number // 2}", "label": "disc", "licence": "CC0",
        })  # fmt: skip
    for name, lines in (("index.jsonl", rows), ("unmasked.jsonl", bare)):
        (tmp_path / "in" / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path / "in" / "index.jsonl"


def _args(output, *more):
    parser = argparse.ArgumentParser()
    composites.add_arguments(parser)
    return parser.parse_args([str(output), "--workers", "1", "--test-share", "0.3", "--per-mask", "2", *map(str, more)])


def _build(output, *more):
    return composites.build(_args(output, *more))


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_layout_split_and_background(index, tmp_path):
    out = tmp_path / "out"
    rows, failures = _build(out, "--index", index, "--unmasked", index.parent / "unmasked.jsonl", "--format", "png")
    assert not failures and len(rows) == 2 * 16
    scenes = {"train": set(), "test": set()}
    for split in scenes:
        triples = iharmony.pairs(out, f"IHD_{split}.txt")
        assert triples
        for triple in triples:
            composite, real, mask = _read(triple.composite), _read(triple.real), np.asarray(Image.open(triple.mask))
            assert set(np.unique(mask)) == {0, 255}
            assert (composite[mask == 0] == real[mask == 0]).all()
            error = ((composite - real)[mask == 255] ** 2).mean()
            assert looks.FMSE_BAND[0] * 0.9 < error < looks.FMSE_BAND[1] * 1.1
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert manifest == rows
    for row in manifest:
        assert row["changes"] and row["kind"] in ("retouch", "transfer") and row["psnr"] > 0
        assert row["composite"] in (out / f"IHD_{row['split']}.txt").read_text().split()
        scenes[row["split"]].add((row["source"], row["group"]))
    assert not scenes["train"] & scenes["test"] and len(scenes["train"] | scenes["test"]) == 6 + 4
    assert {row["subset"] for row in rows} == {"drawn", "bare-ones"} and {
        row["licence"] for row in rows if row["subset"] == "drawn"
    } == {"CC0"}
    real = _read(out / "drawn/real_images/photo-3.png")
    assert (real == _read(index.parent / "photo_3.png")).all()


def test_references_stay_on_their_side(index, tmp_path):
    rows, _ = _build(tmp_path / "out", "--index", index)
    lent = [row for row in rows if row["kind"] == "transfer"]
    groups = {e.key.split("|")[0]: e for e in sources.read_index(index)}
    assert lent
    for row in lent:
        assert sources.side(groups[row["reference"]], 0, 0.3) == row["split"]
        assert groups[row["reference"]].group != row["group"]


def test_workers_and_stops_change_nothing(index, tmp_path):
    more = ("--index", index, "--unmasked", index.parent / "unmasked.jsonl", "--per-source-limit", 4)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    _build(whole, *more)
    _build(stopped, *more, "--limit", 3)
    lost = sorted(stopped.glob("*/composite_images/*.jpg"))[0]
    lost.unlink()
    (lost.parent / f".{lost.name}.123.part").write_bytes(b"half")
    kept = sorted(stopped.glob("*/composite_images/*.jpg"))[0]
    stamp = kept.stat().st_mtime_ns
    _build(stopped, *more, "--workers", 2)
    assert kept.stat().st_mtime_ns == stamp
    assert _files(stopped) == _files(whole)


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


def test_a_full_disk_is_one_line(index, tmp_path):
    more = ("--workers", "2", "--format", "png", "--index", str(index))
    assert runs.run(["make-composites", str(tmp_path / "out"), *more], tmp_path / "stderr", file_limit=3000) == 2
    error = [line for line in (tmp_path / "stderr").read_text().splitlines() if line and "photo/s" not in line]
    assert len(error) == 1 and error[0].startswith("error: ") and "photo-" in error[0]
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_jpeg_keeps_the_background_nearly(index, tmp_path):
    out = tmp_path / "out"
    _build(out, "--index", index, "--per-mask", 1, "--name", "Mine")
    for triple in iharmony.pairs(out, "IHD_train.txt"):
        assert triple.subset == "Mine"
        with Image.open(triple.composite) as file:
            assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3
        mask = np.asarray(Image.open(triple.mask)) > 0
        blocks = np.kron(mask.reshape(HEIGHT // 8, 8, WIDTH // 8, 8).any((1, 3)), np.ones((8, 8), bool))
        assert (_read(triple.composite)[~blocks] == _read(triple.real)[~blocks]).all()


def test_folders_limits_and_size(index, tmp_path):
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
    assert rows[0]["composite"] == "own/composite_images/a-b_1_1.jpg"
    rows, _ = _build(
        tmp_path / "few", "--index", index, "--unmasked", index.parent / "unmasked.jsonl", "--per-source-limit", 3
    )
    assert {s: len({r["mask"] for r in rows if r["source"] == s}) for s in ("drawn", "bare_ones")} == {
        "drawn": 3,
        "bare_ones": 3,
    }


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
        (["--index", str(index), "--strength", "9"], "--strength: must be a number from 0.1 to 2"),
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
    assert {row["real"].rpartition("/")[2] for row in rows} >= {f"photo-{number}.jpg" for number in (*range(1, 12), 14)}


FOREIGN = {
    "no JSON": "text",
    "a list": "[]",
    "deep": "[" * 100_000,
    "half a row": '{"composite": "drawn/composite_images/photo-1_1_1.jpg"}',
    "a number as text": None,
    "of another place": None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_composite_that_is_not_its_own_is_made_again(index, tmp_path, kind):
    out = tmp_path / "out"
    _build(out, "--index", index)
    before = _files(out)
    path = out / "drawn/composite_images/photo-1_1_1.jpg"
    row = json.loads(Image.open(path).info["comment"])
    comment = FOREIGN[kind]
    if kind == "a number as text":
        comment = json.dumps({**row, "psnr": "high"})
    if kind == "of another place":
        comment = json.dumps({**row, "composite": "../../other/composite_images/photo-1_1_1.jpg"})
    Image.new("RGB", (64, 48)).save(path, comment=comment.encode()[:65_000])
    _build(out, "--index", index)
    assert _files(out) == before


def test_the_autoencoder_never_sees_a_photo_that_is_kept_for_testing(index, tmp_path):
    """Without being told the seed and the share again."""
    out = tmp_path / "out"
    _build(out, "--index", index, "--seed", 3)
    test = {triple.real for triple in iharmony.pairs(out, "IHD_test.txt")}
    train = {triple.real for triple in iharmony.pairs(out, "IHD_train.txt")}
    assert test and data.training_photos([out]) == sorted(train)
    # The same photos from their own place: those of the test side stay out of them, too.
    both = {path.name.replace("_", "-") for path in data.training_photos([out, index]) if path not in train}
    assert both == {path.with_suffix(".png").name for path in train}
    everything = data.training_photos([index])
    assert len(everything) == 12


def test_a_data_set_that_names_a_photo_twice_keeps_it_for_testing(index, tmp_path):
    out = tmp_path / "out"
    _build(out, "--index", index)
    lists = {split: (out / name).read_text() for split, name in sources.LISTS.items()}
    (out / "settings.json").unlink()  # as in iHarmony4 itself
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
    _build(out, "--index", index, "--limit", 2)
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
    _build(out, "--index", index, "--limit", 2)
    (out / "IHD_train.txt").unlink()
    assert main(["train-autoencoder", str(out), "--output", str(tmp_path / "run")]) == 2
    assert "make-composites again" in capsys.readouterr().err


def test_one_photos_fault_is_that_photos(index, tmp_path, capsys, monkeypatch):
    """Even a fault of the program: it is named, its traceback is shown, the rest is done, and the exit code tells."""
    change = composites.change_look
    bad = Image.open(index.parent / "photo_3.png").convert("RGB").getpixel((5, 5))

    def broken(picture, *arguments):
        return {}["no such key"] if (picture[5, 5] * 255).round().tolist() == list(bad) else change(picture, *arguments)

    monkeypatch.setattr(composites, "change_look", broken)
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
    for name in ("composite_images/photo-1_1_1.jpg", "masks/photo-1_1.png", "real_images/photo-1.jpg"):
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


@pytest.mark.parametrize("with_reference", [False, True])
def test_change_look(with_reference):
    picture, mask = _photo(3)
    picture = picture.astype(np.float32) / 255
    before = picture.copy()
    reference = (_photo(5)[0].astype(np.float32) / 255, _photo(5)[1]) if with_reference else None
    kinds, errors = set(), {1.0: [], 0.4: []}
    for seed in range(14):
        for strength, found in errors.items():
            composite, note = looks.change_look(picture, mask, np.random.default_rng(seed), reference, strength)
            again, _ = looks.change_look(picture, mask, np.random.default_rng(seed), reference, strength)
            assert (picture == before).all() and (composite == again).all() and composite.dtype == np.float32
            assert (composite[~mask] == picture[~mask]).all() and composite.min() >= 0 and composite.max() <= 1
            error = ((composite - picture)[mask] ** 2).mean() * 255**2
            assert error == pytest.approx(note["fmse"], rel=0.01, abs=0.1)
            found.append(error)
            kinds.add(note["kind"])
    assert kinds == ({"transfer", "retouch"} if with_reference else {"retouch"})
    assert 1000 < np.mean(errors[1.0]) < 5000 and np.mean(errors[0.4]) < 0.5 * np.mean(errors[1.0])


def test_change_look_bad_input():
    picture, mask = np.zeros((8, 8, 3), np.float32), np.zeros((8, 8))
    with pytest.raises(ValueError, match="empty"):
        looks.change_look(picture, mask, np.random.default_rng(0))
    with pytest.raises(ValueError, match="one size"):
        looks.change_look(picture, mask[:4], np.random.default_rng(0))


NOTHING = {
    "exposure": {"ev": 0}, "white_balance": {"temperature": 0, "tint": 0}, "contrast": {"power": 1, "pivot": 0.3}, "gamma": {"power": 1},
    "saturation": {"factor": 1}, "hue": {"degrees": 0}, "tone_curve": {"knots": [0, 0.5, 1]}, "color_matrix": {"matrix": np.eye(3)},
    "channel_curves": {"red": [0, 0.5, 1], "green": [0, 1], "blue": [0, 1]}, "split_tone": {"shadows": [0] * 3, "highlights": [0] * 3},
    "levels": {"black": 0, "white": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", looks.CHANGES)
def test_each_change_can_do_nothing_and_something(name):
    pixels = np.random.default_rng(0).uniform(0.1, 0.8, (400, 3)).astype(np.float32)
    assert np.abs(looks.CHANGES[name](pixels, **NOTHING[name]) - pixels).max() < 2e-3
    changed = looks.apply(pixels, [{"op": name, **looks.DRAWS[name][1](np.random.default_rng(1), 1.0)}])
    assert changed.dtype == np.float32 and np.isfinite(changed).all() and np.abs(changed - pixels).mean() > 0.004


def test_changes_do_what_they_say():
    pixels = np.random.default_rng(0).uniform(0.1, 0.6, (400, 3)).astype(np.float32)
    linear = looks.srgb_to_linear
    assert linear(looks.exposure(pixels, 1)) == pytest.approx(2 * linear(pixels), rel=1e-3)
    assert looks.exposure(np.ones((1, 3), np.float32), 1, shoulder=True).max() < 1
    warm = looks.white_balance(pixels, 0.8, 0)
    weights = np.array([0.2126, 0.7152, 0.0722])
    assert (warm[:, 0] > pixels[:, 0]).all() and (warm[:, 2] < pixels[:, 2]).all()
    grey = np.full((1, 3), 0.5, np.float32)
    assert linear(looks.white_balance(grey, 0.8, 0.2)) @ weights == pytest.approx(linear(grey) @ weights, rel=1e-3)
    assert looks.contrast(np.full((1, 3), 0.3, np.float32), 2.0, 0.3) == pytest.approx(0.3, abs=1e-4)
    assert looks.contrast(pixels, 2.0).std() > pixels.std() > looks.contrast(pixels, 0.5).std()
    turned = looks.hue(pixels, 20)
    assert turned @ looks.LUMA == pytest.approx(pixels @ looks.LUMA, abs=1e-4) and np.abs(turned - pixels).max() > 0.01
    curved = looks.tone_curve(pixels, [0, 0.2, 0.5, 0.9])
    assert curved[:, 0] / curved[:, 1] == pytest.approx(pixels[:, 0] / pixels[:, 1], rel=1e-3)


def test_implausible_changes_are_seen():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.2, 0.7, (500, 3)).astype(np.float32)

    def verdict(changed):
        changed = np.clip(changed, 0, 1).astype(np.float32)
        return looks.plausible(pixels, changed, *looks.measure(pixels, changed, 4000))

    assert verdict(pixels * 0.8)
    assert not verdict(pixels)  # nothing to learn
    assert not verdict(0.9 - pixels)  # a negative
    assert not verdict(pixels + 0.45)  # burnt out
    assert not verdict(np.full_like(pixels, 0.4))  # texture gone
    assert not verdict(pixels + rng.normal(0, 0.4, pixels.shape))  # noise


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
