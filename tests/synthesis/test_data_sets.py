"""What others read out of the folder that make-composites fills."""

import json

import numpy as np
import pytest
import training_runs as runs
from drawn import build

from diffharmony_models.__main__ import main
from diffharmony_models.files import iharmony
from diffharmony_models.synthesis import sources
from diffharmony_models.training import data


def test_the_autoencoder_never_sees_a_photo_that_is_kept_for_testing(index, tmp_path):
    """Without being told the seed and the share again."""
    out = tmp_path / "out"
    build(out, index, seed=3)
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
    build(out, index)
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
    build(out, index, per_mask=1)
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
    build(out, index, per_mask=1)
    (out / "IHD_train.txt").unlink()
    assert main(["train-autoencoder", str(out), "--output", str(tmp_path / "run")]) == 2
    assert "make-composites again" in capsys.readouterr().err


def test_a_segmented_foreground_counts_half_of_a_given_one(index, tmp_path):
    """And every foreground once, with its photo as it was, however many composites there are of it."""
    build(tmp_path, index, index.parent / "unmasked.jsonl", test_share=0)
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
