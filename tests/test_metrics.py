import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from diffharmony_models.evaluation import metrics


def random_pair(batch=2, height=40, width=56):
    real = torch.randint(0, 256, (batch, 3, height, width)).float()
    image = (real + 40 * torch.randn(batch, 3, height, width)).clamp(0, 255).round()
    mask = torch.zeros(batch, 1, height, width)
    mask[:, :, 8:24, 10:30] = 1
    return image, real, mask


def as_hwc(image):
    return image[0].permute(1, 2, 0).numpy()


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
    assert metrics.ssim(real, real).tolist() == pytest.approx([1, 1])
    assert metrics.fssim(real, real, mask).tolist() == pytest.approx([1, 1])


def test_ssim_is_that_of_scikit_image():
    image, real, mask = random_pair(batch=1)
    value, similarity = structural_similarity(
        as_hwc(image),
        as_hwc(real),
        channel_axis=-1,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert 0.5 < value < 0.99
    # scikit-image sums in float32 for float32 pictures
    assert metrics.ssim(image, real).item() == pytest.approx(value, abs=1e-5)
    foreground = mask[0, 0].numpy() == 1
    assert metrics.fssim(image, real, mask).item() == pytest.approx(np.mean(similarity[foreground]), abs=1e-5)


def test_fssim_has_a_value_for_a_foreground_at_the_edge():
    image, real, _ = random_pair(batch=1)
    mask = torch.zeros(1, 1, 40, 56)
    mask[:, :, 0, 0] = 1
    similarity = structural_similarity(
        as_hwc(image).astype(np.float64),
        as_hwc(real).astype(np.float64),
        channel_axis=-1,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    assert metrics.fssim(image, real, mask).item() == pytest.approx(similarity[0, 0].mean(), abs=1e-5)


def test_each_picture_of_a_batch_has_its_own_value():
    image, real, mask = random_pair()
    for function in (metrics.mse, metrics.psnr, metrics.ssim):
        assert function(image, real)[1].item() == pytest.approx(function(image[1:], real[1:]).item())
    for function in (metrics.fmse, metrics.fssim):
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
        metrics.fssim(image, real, mask * 0.5)
    with pytest.raises(ValueError, match="window"):
        metrics.ssim(image[..., :10], real[..., :10])
