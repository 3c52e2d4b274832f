"""Colour spaces against known values, and each transfer against what its paper promises."""

import numpy as np
import pytest
import torch

from diffharmony_models import color

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


def test_lab_comes_back():
    rgb = np.random.default_rng(0).uniform(0.05, 1, (500, 3)).astype(np.float32)
    before = rgb.copy()
    assert np.abs(color.lab_to_rgb(color.rgb_to_lab(rgb)) - rgb).max() < 2e-4
    assert (rgb == before).all() and color.rgb_to_lab(rgb).dtype == np.float32


def test_known_values():
    assert color.srgb_to_linear(0.5) == pytest.approx(0.21404, abs=1e-5)
    assert color.linear_to_srgb(0.21404) == pytest.approx(0.5, abs=1e-5)
    corners = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], np.float32)
    lab = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    assert np.abs(color.rgb_to_lab(corners) - lab).max() < 0.02


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
def test_pictures(transfer):
    source, reference = torch.rand(2, 3, 20, 24) * 0.5 + 0.25, torch.rand(2, 3, 16, 16) * 0.3 + 0.1
    mask = torch.zeros(2, 1, 20, 24)
    mask[:, :, 5:15, 4:20] = 1
    before = source.clone()
    result = transfer(source, reference, mask)
    outside = (mask == 0).expand_as(source)
    assert torch.equal(source, before) and torch.equal(result[outside], source[outside])
    assert (result[~outside].mean() - reference.mean()).abs() < 0.02
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("transfer", PICTURES)
def test_as_a_baseline(transfer):
    composite = torch.rand(1, 3, 32, 32) * 0.2 + 0.2
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    composite = composite + 0.4 * mask
    result = transfer(composite, composite, mask, 1 - mask)
    inside, outside = mask.expand_as(composite) > 0, mask.expand_as(composite) == 0
    assert torch.equal(result[outside], composite[outside])
    assert (result[inside].mean() - composite[outside].mean()).abs() < 0.01
    for empty in (torch.zeros_like(mask), torch.ones_like(mask)):  # no foreground, or no background to learn from
        assert torch.equal(transfer(composite, composite, empty, 1 - empty), composite)
    half = transfer(composite, composite, mask * 0.5, 1 - mask)
    assert torch.allclose(half, (composite + result) / 2, atol=1e-6)


def test_bad_input_is_told():
    image, mask = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    with pytest.raises(ValueError, match="batch of RGB pictures"):
        color.reinhard(image[0], image)
    with pytest.raises(ValueError, match="picture's size"):
        color.reinhard(image, image, mask[..., :4])
    with pytest.raises(ValueError, match="same length"):
        color.reinhard(image, image.expand(2, -1, -1, -1), mask)
