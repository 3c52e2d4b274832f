"""What a training draws from: pairs, photos with foregrounds, and their order."""

import pickle

import numpy as np
import pytest
import torch
import training_runs as runs
from PIL import Image

from diffharmony_models.errors import InputError
from diffharmony_models.training import (
    data,
    loop,
)


def test_foregrounds_are_drawn_by_position_and_lend_each_other_colors(dataset):
    samples = data.Foregrounds(dataset, "IHD_train.txt", 64)
    first, again, other = (samples.get(1, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["photo"], other["photo"])
    assert first["photo"].shape == (3, 64, 64) and set(first["mask"].unique().tolist()) == {0.0, 1.0}
    means = {tuple(samples.get(0, np.random.default_rng(seed))["mean"].tolist()) for seed in range(40)}
    assert len(means) == len(samples) == 6


def test_a_subset_can_be_held_out(dataset):
    with pytest.raises(InputError, match="no picture that is not held out"):
        data.Foregrounds(dataset, "IHD_train.txt", 64, ["Small"])


def test_a_subset_that_is_not_there_is_said(dataset, caplog):
    """A recipe names what its own data had."""
    assert len(data.Foregrounds(dataset, "IHD_train.txt", 64, ["small"])) == 6
    assert "no subset small" in caplog.text


def test_samples_depend_on_their_position_alone(dataset):
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    first, again = loop.Positions(pairs, 3), loop.Positions(pairs, 3)
    for position in (0, 5, 6, 13):
        a, b = first[position], again[position]
        assert all(torch.equal(a[name], b[name]) for name in a)
    epoch = [first._epoch[1].tolist() for position in (0, 6) if first[position] is not None]
    assert sorted(epoch[0]) == sorted(epoch[1]) == list(range(6))
    assert epoch[0] != epoch[1]


def test_crops_keep_a_foreground(dataset):
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    for position in range(12):
        sample = pairs.get(position % 6, np.random.default_rng(position))
        assert sample["mask"].mean() > 0.01 and set(sample["mask"].unique().tolist()) <= {0.0, 1.0}
        outside = (1 - sample["mask"]).bool().expand(3, -1, -1)
        inner = torch.nn.functional.max_pool2d(sample["mask"][None], 9, 1, 4)[0].expand(3, -1, -1) == 0
        assert (sample["composite"] - sample["real"])[outside & inner].abs().max() < 0.15  # JPEG


def test_samples_can_be_sent_to_workers(dataset):
    """On systems whose processes are not forked, each worker gets a pickled copy."""
    positions = loop.Positions(data.Pairs(dataset, "IHD_train.txt", 64), 3)
    sample, copy = positions[4], pickle.loads(pickle.dumps(positions))[4]
    assert all(torch.equal(sample[name], copy[name]) for name in sample)


def alpha_only(path):
    matte = Image.open(path)
    cut = Image.new("LA", matte.size, 0)
    cut.putalpha(matte)
    cut.save(path)


def turned(path):
    """The file lies on its side, and says so."""
    with Image.open(path) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.mark.parametrize("kind", [data.Pairs, data.Foregrounds])
@pytest.mark.parametrize("change, what", [(alpha_only, "masks"), (turned, "masks"), (turned, "*")])
def test_pictures_are_read_as_everywhere(dataset, tmp_path, kind, change, what):
    """A mask may be an alpha channel; what EXIF says is turned upright."""
    other = runs.make_dataset(tmp_path / "data")
    for path in other.glob(f"Small/{what}/*.png"):
        change(path)
    for index in range(3):
        sample, same = (
            kind(root, "IHD_train.txt", 64).get(index, np.random.default_rng(1)) for root in (dataset, other)
        )
        assert sample["mask"].any() and all(torch.equal(sample[name], same[name]) for name in sample)
