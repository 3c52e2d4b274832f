"""How far a harmonized picture is from the real one: PSNR, MSE, fMSE, SSIM and SSIM of the foreground.

All functions take pictures as BCHW tensors in 0–255 and give one float64 value a picture, of shape [B]. They measure
what they are given: resizing to 256×256, rounding to 8 bit and putting the foreground on the real background are the
evaluation's business.
"""

import math

import torch
import torch.nn.functional as F

from ..errors import InputError

PEAK = 255.0

# Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004:
# Gaussian window of 11×11 with sigma 1.5, K1 = 0.01, K2 = 0.03.
_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5
_SSIM_C1, _SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def mse(image: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all pixels and channels.

    Args:
        image, real: BCHW, 0–255, of one shape.

    Returns:
        [B] float64, in squared grey levels.

    Raises:
        ValueError: shapes that differ or are not BCHW.
    """
    _check(image, real)
    return (image.double() - real.double()).square().mean(dim=(1, 2, 3))


def psnr(image: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, ``10 log10(255² / MSE)``.

    Args:
        image, real: BCHW, 0–255, of one shape.

    Returns:
        [B] float64, in dB; infinite where the two are equal.

    Raises:
        ValueError: shapes that differ or are not BCHW.
    """
    return 20 * math.log10(PEAK) - 10 * torch.log10(mse(image, real))


def fmse(image: torch.Tensor, real: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error inside the mask, divided by the number of foreground pixels (and averaged over the channels).

    Args:
        image, real: BCHW, 0–255, of one shape.
        mask: B1HW, 0 or 1, 1 = foreground.

    Returns:
        [B] float64, in squared grey levels.

    Raises:
        ValueError: shapes that do not fit, a mask with other values than 0 and 1, a mask without foreground.
    """
    _check(image, real)
    mask = _check_mask(mask, image)
    error = (image.double() - real.double()).square().mean(dim=1, keepdim=True)
    return (error * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def ssim(image: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Structural similarity: `ssim_map` averaged over channels and pixels; windows that leave the picture do not count.

    Args:
        image, real: BCHW, 0–255, of one shape, sides of 11 or more.

    Returns:
        [B] float64, 1 where the two are equal.

    Raises:
        ValueError: shapes that differ, are not BCHW, or are smaller than the window.
    """
    return mean_ssim(ssim_map(image, real))


def fssim(image: torch.Tensor, real: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Structural similarity of the foreground: `ssim_map` averaged over channels and the mask's pixels.

    Args:
        image, real: BCHW, 0–255, of one shape, sides of 11 or more.
        mask: B1HW, 0 or 1, 1 = foreground.

    Returns:
        [B] float64.

    Raises:
        ValueError: as for `ssim` and `fmse`.
    """
    return foreground_ssim(ssim_map(image, real), mask)


def ssim_map(image: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Wang et al. 2004 at each pixel and channel.

    The window is the paper's Gaussian (11×11, sigma 1.5) with population covariances; the pictures are mirrored at
    their edges. scikit-image gives the same for ``structural_similarity(..., channel_axis=-1, data_range=255,
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)``.

    Args:
        image, real: BCHW, 0–255, of one shape, sides of 11 or more.

    Returns:
        BCHW float64, at most 1.

    Raises:
        ValueError: shapes that differ, are not BCHW, or are smaller than the window.
    """
    _check(image, real)
    if min(image.shape[-2:]) < 2 * _SSIM_RADIUS + 1:
        raise InputError(
            f"SSIM's window has {2 * _SSIM_RADIUS + 1} pixels a side, the picture {_size(image)}: score a larger one"
        )
    # Variances are differences of large numbers: around the middle grey float32 is exact enough for them.
    middle = PEAK / 2
    x, y = image.float() - middle, real.float() - middle
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1)).double().chunk(5, dim=1)
    )
    variance_x, variance_y = mean_xx - mean_x.square(), mean_yy - mean_y.square()
    covariance = mean_xy - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x.square() + mean_y.square() + _SSIM_C1)
    return luminance * (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)


def mean_ssim(similarity: torch.Tensor) -> torch.Tensor:
    """A `ssim_map` averaged as `ssim` does it: BCHW to [B]."""
    inner = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return similarity[:, :, inner, inner].mean(dim=(1, 2, 3))


def foreground_ssim(similarity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A `ssim_map` averaged as `fssim` does it: BCHW and B1HW to [B].

    Pixels nearer to the picture's edge than the window's radius count too, so that a foreground at the edge has a
    value.
    """
    mask = _check_mask(mask, similarity)
    return (similarity.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """Gaussian window over each channel, same size; the edge pixel itself is mirrored too."""
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=planes.dtype, device=planes.device)
    window = torch.exp(-offsets.square() / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()
    channels = planes.shape[1]
    for dim in (2, 3):
        before = planes.narrow(dim, 0, _SSIM_RADIUS).flip(dim)
        after = planes.narrow(dim, planes.shape[dim] - _SSIM_RADIUS, _SSIM_RADIUS).flip(dim)
        kernel = window.view(1, 1, -1, 1) if dim == 2 else window.view(1, 1, 1, -1)
        planes = F.conv2d(
            torch.cat([before, planes, after], dim=dim), kernel.expand(channels, *kernel.shape[1:]), groups=channels
        )
    return planes


def _check(image: torch.Tensor, real: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape != real.shape:
        raise InputError(
            f"Picture and real picture must be BCHW of one shape: {tuple(image.shape)} != {tuple(real.shape)}"
        )


def _check_mask(mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    expected = (image.shape[0], 1, *image.shape[-2:])
    if tuple(mask.shape) != expected:
        raise InputError(f"Mask and picture do not fit: {tuple(mask.shape)}, expected {expected}")
    if not torch.all((mask == 0) | (mask == 1)):
        raise InputError("The mask has values between 0 and 1; binarise it (>= 0.5) before scoring")
    if not torch.all(mask.flatten(1).any(dim=1)):
        raise InputError(f"The mask has no foreground at {_size(image)}: there is nothing to score")
    return mask.double()


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
