import math

import pytest
import torch

from diffharmony_models.evaluation import metrics


def random_pair(batch=2, height=40, width=56):
    real = torch.randint(0, 256, (batch, 3, height, width)).float()
    image = (real + 40 * torch.randn(batch, 3, height, width)).clamp(0, 255).round()
    mask = torch.zeros(batch, 1, height, width)
    mask[:, :, 8:24, 10:30] = 1
    return image, real, mask


def ssim(image, real):
    return metrics.mean_ssim(metrics.ssim_map(image, real))


def fssim(image, real, mask):
    return metrics.foreground_ssim(metrics.ssim_map(image, real), mask)


def test_values_worked_out_by_hand():
    real = torch.zeros(2, 3, 4, 4)
    image = real.clone()
    image[0, :, 0, 0] = 8  # one pixel of 16, all channels: 64 / 16 = 4
    image[0, 0, 3, 3] = 4  # outside the mask: 16 / 48 more
    image[1] = 255
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 0, :2] = 1

    expected_mse = [4 + 1 / 3, 65025]
    assert metrics.mse(image, real).tolist() == pytest.approx(expected_mse)
    assert metrics.psnr(image, real).tolist() == pytest.approx([10 * math.log10(65025 / expected_mse[0]), 0])
    assert metrics.fmse(image, real, mask).tolist() == pytest.approx([32, 65025])  # 64 over two foreground pixels


def test_fmse_of_a_full_mask_is_the_mse():
    image, real, _ = random_pair()
    assert torch.allclose(metrics.fmse(image, real, torch.ones(2, 1, 40, 56)), metrics.mse(image, real))


def test_equal_pictures():
    _, real, mask = random_pair()
    assert metrics.mse(real, real).tolist() == [0, 0]
    assert metrics.psnr(real, real).tolist() == [math.inf, math.inf]
    assert ssim(real, real).tolist() == pytest.approx([1, 1])
    assert fssim(real, real, mask).tolist() == pytest.approx([1, 1])


def test_ssim_is_that_of_the_paper():
    """One window worked out by its definition: weighted means, variances and covariance of two 11×11 planes."""
    image, real, _ = random_pair(1, 11, 11)
    x, y = image.double(), real.double()
    offsets = torch.arange(-5, 6).double()
    window = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def mean(plane):
        return (plane * window).sum(dim=(-2, -1))

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y, covariance = (mean(a * b) - mean(a) * mean(b) for a, b in ((x, x), (y, y), (x, y)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    assert 0.1 < expected.mean() < 0.99
    assert ssim(image, real).item() == pytest.approx(expected.mean().item(), abs=1e-9)
    middle = torch.zeros(1, 1, 11, 11)
    middle[..., 5, 5] = 1
    assert fssim(image, real, middle).item() == pytest.approx(expected.mean().item(), abs=1e-9)


def test_fssim_has_a_value_for_a_foreground_at_the_edge():
    """The pictures are mirrored there, edge pixel and all."""
    image, real, _ = random_pair(batch=1)
    mask = torch.zeros(1, 1, 40, 56)
    mask[:, :, 0, 0] = 1
    mirrored = [torch.cat([each[..., :6].flip(-1), each], dim=-1) for each in (image, real)]
    mirrored = [torch.cat([each[..., :6, :].flip(-2), each], dim=-2) for each in mirrored]
    inside = torch.zeros(1, 1, 46, 62)
    inside[:, :, 6, 6] = 1
    assert fssim(image, real, mask).item() == pytest.approx(fssim(*mirrored, inside).item(), abs=1e-9)


def test_each_picture_of_a_batch_has_its_own_value():
    image, real, mask = random_pair()
    for function in (metrics.mse, metrics.psnr, ssim):
        assert function(image, real)[1].item() == pytest.approx(function(image[1:], real[1:]).item())
    for function in (metrics.fmse, fssim):
        assert function(image, real, mask)[1].item() == pytest.approx(function(image[1:], real[1:], mask[1:]).item())


def test_what_cannot_be_scored_is_said():
    image, real, mask = random_pair()
    with pytest.raises(ValueError, match="one shape"):
        metrics.mse(image, real[:, :, :-1])
    with pytest.raises(ValueError, match="expected"):
        metrics.fmse(image, real, mask[:1])
    with pytest.raises(ValueError, match="no foreground at 56x40"):
        metrics.fmse(image, real, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="binarise"):
        fssim(image, real, mask * 0.5)
    with pytest.raises(ValueError, match="window"):
        ssim(image[..., :10], real[..., :10])
