"""What stage 1 makes of the refiner's data, kept in a file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffharmony_models.training import (
    cache,
    data,
    recipe,
)


def test_cache_is_made_anew_for_other_data(dataset, tmp_path):
    settings = recipe.Settings(workers=0)
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    calls = []

    def make(batch, seeds):
        calls.append(seeds)
        return {"mask": batch["mask"]}

    for repeats, wanted in ((1, [6]), (1, []), (2, [8, 4])):  # twelve samples are two batches
        calls.clear()
        cached = cache.Cached(tmp_path / "c.safetensors", pairs, settings, repeats, make, torch.uint8, {})
        assert len(cached) == 6 * repeats
        assert list(map(len, calls)) == [*wanted, 1]  # the last: what the file must look like
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("mask"),
        lambda tensors: tensors.update(mask=tensors["mask"][:3]),
        lambda tensors: tensors.update(mask=tensors["mask"].half()),
        lambda tensors: tensors.update(more=tensors["mask"].clone()),
        None,
    ],
    ids=["lacks", "too few", "dtype", "has more", "cut short"],
)
def test_a_cache_that_is_not_its_own_is_refused(dataset, tmp_path, damage):
    settings = recipe.Settings(workers=0)
    pairs, path = data.Pairs(dataset, "IHD_train.txt", 64), tmp_path / "c.safetensors"

    def cached():
        return cache.Cached(path, pairs, settings, 1, lambda batch, seeds: batch, torch.uint8, {})

    cached()
    if damage is None:
        path.write_bytes(path.read_bytes()[:-8])
    else:
        tensors, facts = load_file(path), cache.state.metadata(path)
        damage(tensors)
        save_file(tensors, path, facts)
    with pytest.raises(ValueError, match=r"c\.safetensors") as caught:
        cached()
    assert type(caught.value).__name__ == "InputError"
