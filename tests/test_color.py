"""Colour spaces against known values, and each transfer against what its paper promises."""

import numpy as np
import pytest
import torch

from diffharmony_models import color


@pytest.fixture
def clouds():
    """Source and reference pixels (N, 3) with other means, spreads and axes, well inside [0, 1]."""
    rng = np.random.default_rng(0)
    source = 0.5 + rng.normal(size=(4000, 3)) @ np.array([[0.05, 0.04, 0.03], [0, 0.03, -0.01], [0, 0, 0.02]])
    reference = np.array([0.6, 0.45, 0.3]) + rng.normal(size=(3000, 3)) @ np.array(
        [[0.08, 0.05, 0.01], [0, 0.02, 0.02], [0, 0, 0.04]]
    )
    return source.astype(np.float32), reference.astype(np.float32)


@pytest.mark.parametrize("space", color.SPACES)
def test_spaces_come_back(space):
    there, back = color.SPACES[space]
    rgb = np.random.default_rng(0).uniform(0.05, 1, (500, 3)).astype(np.float32)
    before = rgb.copy()
    assert np.abs(back(there(rgb)) - rgb).max() < 2e-4
    assert (rgb == before).all() and there(rgb).dtype == np.float32


def test_known_values():
    assert color.srgb_to_linear(0.5) == pytest.approx(0.21404, abs=1e-5)
    assert color.linear_to_srgb(0.21404) == pytest.approx(0.5, abs=1e-5)
    corners = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], np.float32)
    lab = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    assert np.abs(color.rgb_to_lab(corners) - lab).max() < 0.02
    assert color.rgb_to_ycbcr(corners)[0] * 255 == pytest.approx([76.245, 84.47, 255], abs=0.05)
    grey = color.saturate(corners, 0)
    assert np.ptp(grey, axis=1).max() < 1e-6 and grey[1, 0] == pytest.approx(0.587)
    assert np.abs(color.saturate(corners, 1) - corners).max() < 1e-6


def test_mean_and_deviation_are_the_references(clouds):
    result = color.match_mean_std(*clouds)
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=1e-4)
    assert result.std(0) == pytest.approx(clouds[1].std(0), rel=1e-3)


@pytest.mark.parametrize("match", [color.match_covariance, color.match_monge_kantorovitch])
def test_covariance_is_the_references(clouds, match):
    result = match(*clouds)
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=1e-4)
    assert np.abs(np.cov(result.T) - np.cov(clouds[1].T)).max() < 2e-5
    assert np.abs(match(clouds[0], clouds[0]) - clouds[0]).max() < 1e-3


def test_monge_kantorovitch_moves_colours_least(clouds):
    moved = {
        f.__name__: ((f(*clouds) - clouds[0]) ** 2).sum()
        for f in (color.match_covariance, color.match_monge_kantorovitch)
    }
    assert moved["match_monge_kantorovitch"] <= moved["match_covariance"]


def test_histograms_are_the_references(clouds):
    result = color.match_histograms(*clouds)
    shares = np.linspace(0.02, 0.98, 25)
    assert np.abs(np.quantile(result, shares, axis=0) - np.quantile(clouds[1], shares, axis=0)).max() < 0.01
    order = np.argsort(clouds[0][:, 0])
    assert (np.diff(result[order, 0]) >= -1e-5).all()


def test_distribution_transfer_comes_nearer_than_histograms(clouds):
    def away(pixels):
        return np.abs(np.cov(pixels.T) - np.cov(clouds[1].T)).max()

    result = color.match_distribution(*clouds, iterations=10)
    assert away(result) < 0.3 * away(color.match_histograms(*clouds))
    assert (color.match_distribution(*clouds, seed=3) == color.match_distribution(*clouds, seed=3)).all()


@pytest.mark.parametrize("method", color.TRANSFERS)
def test_gain_is_bounded_and_flat_sources_stay_finite(clouds, method):
    nearly_flat = 0.5 + (clouds[0] - 0.5) * np.float32(0.01)
    result = color.TRANSFERS[method](nearly_flat, clouds[1], max_gain=2.0)
    assert result.std(0).max() < 3 * nearly_flat.std(0).max()
    assert result.mean(0) == pytest.approx(clouds[1].mean(0), abs=0.01)
    flat = color.TRANSFERS[method](np.full((50, 3), 0.25, np.float32), clouds[1])
    assert np.isfinite(flat).all() and flat.shape == (50, 3)


@pytest.mark.parametrize("method", color.TRANSFERS)
def test_pictures(method):
    source, reference = torch.rand(2, 3, 20, 24) * 0.5 + 0.25, torch.rand(2, 3, 16, 16) * 0.3 + 0.1
    mask = torch.zeros(2, 1, 20, 24)
    mask[:, :, 5:15, 4:20] = 1
    before = source.clone()
    result = color.transfer_colors(source, reference, mask, method=method)
    outside = (mask == 0).expand_as(source)
    assert torch.equal(source, before) and torch.equal(result[outside], source[outside])
    assert (result[~outside].mean() - reference.mean()).abs() < 0.02
    assert result.min() >= 0 and result.max() <= 1


def test_reinhard_as_the_baseline():
    composite = torch.rand(1, 3, 32, 32) * 0.2 + 0.2
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    composite = composite + 0.4 * mask
    result = color.reinhard(composite, composite, mask, 1 - mask)
    inside, outside = mask.expand_as(composite) > 0, mask.expand_as(composite) == 0
    assert torch.equal(result[outside], composite[outside])
    assert (result[inside].mean() - composite[outside].mean()).abs() < 0.01
    for empty in (torch.zeros_like(mask), torch.ones_like(mask)):  # no foreground, or no background to learn from
        assert torch.equal(color.reinhard(composite, composite, empty, 1 - empty), composite)
    half = color.reinhard(composite, composite, mask * 0.5, 1 - mask)
    assert torch.allclose(half, (composite + result) / 2, atol=1e-6)


def test_bad_input_is_told():
    image, mask = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    with pytest.raises(ValueError, match="methods: reinhard"):
        color.transfer_colors(image, image, method="magic")
    with pytest.raises(ValueError, match="batch of RGB pictures"):
        color.reinhard(image[0], image)
    with pytest.raises(ValueError, match="picture's size"):
        color.reinhard(image, image, mask[..., :4])
    with pytest.raises(ValueError, match="same length"):
        color.reinhard(image, image.expand(2, -1, -1, -1), mask)
