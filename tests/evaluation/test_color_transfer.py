"""Each transfer against what its paper promises."""

import numpy as np
import pytest
import torch

from diffharmony_models.evaluation import color_transfer as color

MATCHES = (color.match_mean_std, color.match_monge_kantorovitch)
PICTURES = (color.reinhard, color.monge_kantorovitch)


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Source and reference pixels (N, 3) with other means, spreads and axes, well inside [0, 1]."""
    rng = np.random.default_rng(0)
    source = 0.5 + rng.normal(size=(4000, 3)) @ np.array([[0.05, 0.04, 0.03], [0, 0.03, -0.01], [0, 0, 0.02]])
    reference = np.array([0.6, 0.45, 0.3]) + rng.normal(size=(3000, 3)) @ np.array(
        [[0.08, 0.05, 0.01], [0, 0.02, 0.02], [0, 0, 0.04]]
    )
    return source.astype(np.float32), reference.astype(np.float32)


def test_mean_and_deviation_are_the_references(clouds):
    result = color.match_mean_std(*clouds)
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=1e-4)
    assert result.std(0) == pytest.approx(clouds[1].std(0), rel=1e-3)


def test_covariance_is_the_references(clouds):
    result = color.match_monge_kantorovitch(*clouds)
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=1e-4)
    assert np.abs(np.cov(result.T) - np.cov(clouds[1].T)).max() < 2e-5
    assert np.abs(color.match_monge_kantorovitch(clouds[0], clouds[0]) - clouds[0]).max() < 1e-3


def test_monge_kantorovitch_moves_colours_least(clouds):
    """Less than another linear map to the same mean and covariance: that of the Cholesky factors."""
    source, reference = clouds
    own, goal = (np.linalg.cholesky(np.cov(pixels.T)) for pixels in clouds)
    other = (source - source.mean(0)) @ (goal @ np.linalg.inv(own)).T + reference.mean(0)
    assert np.abs(np.cov(other.T) - np.cov(reference.T)).max() < 2e-5
    assert ((color.match_monge_kantorovitch(*clouds) - source) ** 2).sum() < ((other - source) ** 2).sum()


@pytest.mark.parametrize("match", MATCHES)
def test_gain_is_bounded_and_flat_sources_stay_finite(clouds, match):
    nearly_flat = 0.5 + (clouds[0] - 0.5) * np.float32(0.01)
    result = match(nearly_flat, clouds[1])
    assert result.std(0).max() < 1.5 * color.MAX_GAIN * nearly_flat.std(0).max()
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=0.01)
    flat = match(np.full((50, 3), 0.25, np.float32), clouds[1])
    assert np.isfinite(flat).all() and flat.shape == (50, 3)


@pytest.mark.parametrize("transfer", PICTURES)
def test_the_foreground_gets_the_backgrounds_colours(transfer):
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    composite = torch.rand(2, 3, 32, 32) * 0.2 + 0.2 + 0.4 * mask
    before = composite.clone()
    result = transfer(composite, mask)
    assert torch.equal(composite, before) and result.min() >= 0 and result.max() <= 1
    for number, inside in enumerate(mask[:, 0] == 1):
        assert torch.equal(result[number][:, ~inside], composite[number][:, ~inside])
        wanted = composite[number][:, ~inside]
        assert (result[number][:, inside].mean(dim=1) - wanted.mean(dim=1)).abs().max() < 0.01
        assert (result[number][:, inside].std(dim=1) / wanted.std(dim=1) - 1).abs().max() < 0.1
    for empty in (torch.zeros_like(mask), torch.ones_like(mask)):  # no foreground, or no background to learn from
        assert torch.equal(transfer(composite, empty), composite)
