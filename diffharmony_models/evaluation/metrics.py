"""How far a harmonized picture is from the real one: PSNR, MSE, fMSE, SSIM and SSIM of the foreground.

All functions take pictures as BCHW tensors in 0–255 and give one float64 value a picture, of shape [B]. They measure
what they are given: resizing to 256×256, rounding to 8 bit and putting the foreground on the real background are the
evaluation's business.
"""

import math

import torch
from skimage.metrics import structural_similarity

from ..errors import InputError

PEAK = 255.0

# Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004:
# Gaussian window of 11×11 with sigma 1.5.
_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5


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


def ssim_map(image: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Wang et al. 2004 at each pixel, averaged over the channels.

    scikit-image's, with the paper's Gaussian window and population covariances; the pictures are mirrored at their
    edges.

    Args:
        image, real: BCHW, 0–255, of one shape, sides of 11 or more.

    Returns:
        B1HW float64, at most 1.

    Raises:
        ValueError: shapes that differ, are not BCHW, or are smaller than the window.
    """
    _check(image, real)
    if min(image.shape[-2:]) < 2 * _SSIM_RADIUS + 1:
        raise InputError(
            f"SSIM's window has {2 * _SSIM_RADIUS + 1} pixels a side, the picture {_size(image)}: score a larger one"
        )
    options = {"gaussian_weights": True, "sigma": _SSIM_SIGMA, "use_sample_covariance": False, "full": True}
    result = image.new_zeros((len(image), 1, *image.shape[-2:]), dtype=torch.float64, device="cpu")
    for total, planes in zip(result, torch.stack([image, real], dim=2).double().cpu().numpy()):
        for plane, real_plane in planes:  # a channel at a time, for the planes of a large picture fill the memory
            total += torch.from_numpy(structural_similarity(plane, real_plane, data_range=PEAK, **options)[1])
    return result / image.shape[1]


def mean_ssim(similarity: torch.Tensor) -> torch.Tensor:
    """SSIM, [B]: the mean of a `ssim_map`; windows that leave the picture do not count."""
    inner = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return similarity[:, :, inner, inner].mean(dim=(1, 2, 3))


def foreground_ssim(similarity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """SSIM of the foreground, [B]: the mean of a `ssim_map`, B1HW, where mask, B1HW, is 1.

    Pixels nearer to the picture's edge than the window's radius count too, so that a foreground at the edge has a
    value. Raises ValueError for a mask that `fmse` refuses.
    """
    mask = _check_mask(mask, similarity)
    return (similarity * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


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
