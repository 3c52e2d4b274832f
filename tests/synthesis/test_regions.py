"""Foregrounds that are segmented in photos without masks."""

import numpy as np
from drawn import photo

from diffharmony_models.synthesis import regions


def test_regions_are_connected_and_of_fair_size():
    from scipy.ndimage import label

    found = 0
    for seed in range(5):
        picture = photo(seed, 150, 200)[0].astype(np.float32) / 255
        for mask in regions.segment(picture, np.random.default_rng(seed), 2):
            found += 1
            assert mask.shape == (150, 200) and mask.dtype == bool
            assert regions.AREA[0] <= mask.mean() <= regions.AREA[1]
            assert label(mask)[1] == 1
    assert found >= 5
