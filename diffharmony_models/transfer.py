"""The change of colour found at a small size, carried to the composite's own pixels.

Between the composite and the harmonized picture, both at a small size, a colour model is fitted inside the mask: a
quadratic one for the whole foreground, and around each pixel an affine one (3x3 matrix and offset) for what is left,
fitted in windows that narrow from level to level. Each is drawn towards the one before it, the more so the noisier
the harmonized picture is, so that a flat or ill-seen place follows its surroundings and keeps its texture. The models'
coefficients, not the pixels, are then scaled up and applied to the full-size composite.

The windowed fit is the guided filter's (He, Sun, Tang: Guided Image Filtering, TPAMI 2013, eq. 14-16, colour guide),
with sums that count mask pixels only; scaling up its coefficients follows He, Sun: Fast Guided Filter, 2015.

An autoencoder blurs what it decodes. Fitting a sharp picture to a blurred one would be answered with less contrast, so
the composite is blurred as much as the harmonized picture is (the amount is found by trying) before the fit.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import geometry
from .errors import InputError

RADIUS = 12
REGULARIZATION = 1e-5
FIT_SIZE = 512

# Mean fMSE of 16 real pairs, transferred from the real picture, from a small VAE's copy of it, and from a small
# diffusion model's result: 32, 114 and 1436. Without blurring: 32, 163 and 1465.
BLURS = (0.0, 0.7, 1.0, 1.4, 1.8, 2.2, 2.8, 3.5)  # standard deviations tried, pixels of the fit
WIDER = 3  # the first level's windows, in radii
GLOBAL_REGULARIZATION = 3e-4
NOISE_TO_MATRIX = 16.0  # variance of the noise to ridge; without: 25, 123 and 1452
PIXELS = 4.0  # that a window must count for its model to be believed by half
EDGE_WEIGHT = 1e-3  # pixels at the mask's edge count only where there are no others
LEAST_MASK = 1e-6  # less shows in no picture, and its square is lost in float32
STRIP_PIXELS = 1 << 20


@dataclass
class ColorModel:
    """out = polynomial(pixel) + matrix @ pixel + offset, pixels in [0, 1].

    polynomial: [10, 3], for the terms of `_terms`. local: [1, 12, h, w], the 3x3 matrix (row by row: input channel,
    then output channel) and the offset around each pixel of the fit; valid outside the mask too.
    """

    polynomial: torch.Tensor
    local: torch.Tensor

    def to(self, device: torch.device) -> "ColorModel":
        return ColorModel(self.polynomial.to(device), self.local.to(device))

    def __call__(self, image: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """image [1, 3, H, W] in [0, 1] with `local` [1, 12, H, W] scaled to it; [1, 3, H, W], not clamped."""
        return _affine(image, local) + self.everywhere(image)

    def everywhere(self, image: torch.Tensor) -> torch.Tensor:
        """image [1, 3, H, W] in [0, 1] through the polynomial alone; not clamped."""
        return torch.einsum("bkhw,kc->bchw", _terms(image), self.polynomial)


def transfer(
    harmonized: torch.Tensor,
    composite: torch.Tensor,
    mask: torch.Tensor,
    radius: int = RADIUS,
    regularization: float = REGULARIZATION,
    fit_size: int = FIT_SIZE,
    feather: int = 0,
    detail: float = 1.0,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """The composite's own pixels with the harmonized picture's colours, at the composite's size.

    harmonized: [B, 3, h, w] in [0, 1], the whole picture at any size (squashed or with sides rounded, it still covers
    the composite from edge to edge). composite: [B, 3, H, W] in [0, 1]. mask: [B, 1, H, W] or [1, 1, H, W] in [0, 1],
    1 = foreground, taken as a matte. radius: of the windows of the finest level, pixels of the fit, >= 1; smaller
    follows local light closer, larger is calmer. regularization: variance (of colours in [0, 1]) below which a window
    is drawn to its surroundings' colour model, > 0; noise found in the harmonized picture adds to it. fit_size: the fit
    is made at the harmonized picture's size, but its shorter side is at most this many pixels, and it never exceeds the
    composite. feather: pixels of the composite by which the mask's edge is softened inwards. detail: 1 keeps all of the
    composite's texture, 0 shows the harmonized picture itself, scaled up, in the mask. seen: [B, 1, h, w], of the
    harmonized picture's size, 0 where it shows nothing of the composite, so that nothing is fitted to it there.
    Returns [B, 3, H, W] in [0, 1], of the composite's dtype, where mask == 0 the composite's own pixels bit for bit. An
    empty mask gives a copy of the composite. Beyond input and output it needs memory for one mask and for strips.
    Raises ValueError when sizes or batches do not go together, for settings out of range, and for NaN in `harmonized`.
    """
    composite, mask = geometry.match(composite, mask)
    _check(harmonized, composite, radius, regularization, fit_size, detail)
    result = composite.clone()
    for i in range(composite.shape[0]):
        one = slice(i, i + 1)
        shown = None if seen is None else seen[one]
        model = find(harmonized[one], composite[one], mask[one], radius, regularization, fit_size, shown)
        if model is not None:
            apply(model, harmonized[one], composite[one], mask[one], feather, detail, result[one])
    return result


def find(
    harmonized: torch.Tensor,
    composite: torch.Tensor,
    mask: torch.Tensor,
    radius: int = RADIUS,
    regularization: float = REGULARIZATION,
    fit_size: int = FIT_SIZE,
    seen: torch.Tensor | None = None,
) -> ColorModel | None:
    """The change of one picture, on the CPU; None where the mask is empty. Arguments as for `transfer`."""
    if not (mask > LEAST_MASK).any():
        return None
    size = fitting_size(harmonized.shape[-2:], composite.shape[-2:], fit_size)
    small, small_composite, small_mask = (
        geometry.resize(image.float(), size).cpu() for image in (harmonized, composite, mask)
    )
    if seen is not None:
        shown = small_mask * geometry.resize(seen.float(), size).cpu().eq(1)
        small_mask = shown if (shown > LEAST_MASK).any() else small_mask
    return fit(small, small_composite, small_mask, radius, regularization)


def fitting_size(harmonized: tuple[int, int], composite: tuple[int, int], fit_size: int) -> tuple[int, int]:
    """(height, width) of the fit: the harmonized picture's, shorter side at most `fit_size`, within the composite's."""
    scale = min(1.0, fit_size / min(harmonized))
    height, width = (max(1, min(round(side * scale), full)) for side, full in zip(harmonized, composite))
    return height, width


def fit(
    harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, radius: int, regularization: float
) -> ColorModel:
    """The colour model that turns `composite` into `harmonized` inside the mask.

    harmonized, composite: [1, 3, h, w] in [0, 1], float32. mask: [1, 1, h, w] in [0, 1], not empty. radius: pixels. All
    on the CPU, which has the float64 that the sums need.
    """
    terms = _terms(composite)
    blur = _find_blur(harmonized, terms, _weights(mask, 1))
    # An edge pixel is a mixture with the background, in the harmonized picture as far as its blur reaches.
    weights = _weights(mask, max(1, round(blur)))
    terms = _blurred(terms, blur)
    polynomial = _fit_polynomial(harmonized, terms, weights)
    guide = terms[:, :3]
    rest = harmonized - torch.einsum("bkhw,kc->bchw", terms, polynomial)

    closest = _fit_local(guide, rest, weights, radius, regularization)
    left = rest - _affine(guide, closest)
    noise = float((weights * left.square()).sum() / (3 * weights.sum()))
    ridge = regularization + NOISE_TO_MATRIX * noise

    local = torch.zeros_like(closest)
    for window in (WIDER * radius, radius):
        level = _fit_local(guide, rest, weights, window, ridge)
        local = local + level
        rest = rest - _affine(guide, level)
    return ColorModel(polynomial, local)


def apply(
    model: ColorModel,
    harmonized: torch.Tensor,
    composite: torch.Tensor,
    mask: torch.Tensor,
    feather: int,
    detail: float,
    out: torch.Tensor,
) -> None:
    """Writes the changed composite into `out`, a copy of it, in strips of about STRIP_PIXELS pixels. All of one
    picture; arguments as for `transfer`."""
    model, matte = model.to(composite.device), geometry.feathered(mask, feather)
    height, width = composite.shape[-2:]
    if detail < 1:
        harmonized = geometry.resize(harmonized.float(), (height, width))
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        if not (matte[:, :, strip] > 0).any():
            continue
        own = composite[:, :, strip]
        local = geometry.resize(_rows(model.local, height, strip), (own.shape[-2], width))
        changed = model(own.float(), local)
        if detail < 1:
            changed = torch.lerp(harmonized[:, :, strip], changed, detail)
        out[:, :, strip] = geometry.paste(changed.clamp_(0, 1), own, matte[:, :, strip])


def _rows(image: torch.Tensor, height: int, strip: slice) -> torch.Tensor:
    """The rows of `strip` of `image` [B, C, h, w] as they would be if it were scaled, bilinearly, to `height` rows."""
    last = image.shape[-2] - 1
    rows = torch.arange(strip.start, strip.stop, device=image.device, dtype=torch.float32)
    at = ((rows + 0.5) * (image.shape[-2] / height) - 0.5).clamp(0, last)
    above = at.floor().long()
    return torch.lerp(image[:, :, above], image[:, :, (above + 1).clamp(max=last)], (at - above)[:, None])


def _terms(image: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] to [B, 10, H, W]: r, g, b, 1, and the six products of two of them."""
    red, green, blue = image.unbind(1)
    products = (red * red, green * green, blue * blue, red * green, green * blue, blue * red)
    return torch.stack((red, green, blue, torch.ones_like(red), *products), 1)


def _affine(image: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """[1, 3, H, W] through each pixel's own matrix and offset [1, 12, H, W]."""
    matrix, offset = local[:, :9].unflatten(1, (3, 3)), local[:, 9:]
    return offset + image[:, 0:1] * matrix[:, 0] + image[:, 1:2] * matrix[:, 1] + image[:, 2:3] * matrix[:, 2]


def _find_blur(harmonized: torch.Tensor, terms: torch.Tensor, weights: torch.Tensor) -> float:
    """The blur (standard deviation in pixels) of the composite that explains the harmonized picture best."""
    errors = []
    for blur in BLURS:
        blurred = _blurred(terms, blur)
        polynomial = _fit_polynomial(harmonized, blurred, weights)
        error = harmonized - torch.einsum("bkhw,kc->bchw", blurred, polynomial)
        # Only what changes within a window tells of blur; the rest is local light.
        error = error - _mean(weights * error, 8) / _mean(weights, 8).clamp_min(1e-6)
        errors.append(float((weights * error.square()).sum()))
    return BLURS[errors.index(min(errors))]


def _fit_polynomial(harmonized: torch.Tensor, terms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[10, 3]: ridge regression of the harmonized colours on the terms, drawn towards no change; the mean is met."""
    total = weights.sum()
    weights = weights.flatten(2)[0]
    terms, harmonized = terms.flatten(2)[0], harmonized.flatten(2)[0]
    change = harmonized - terms[:3]
    # The fewer pixels, the less is read from them; a handful give a shift of the mean.
    count = total.square() / weights.square().sum()
    ridge = torch.full((terms.shape[0],), GLOBAL_REGULARIZATION, device=terms.device) * (1 + 100 / count)
    ridge[3] = 0
    covariance = (terms * weights) @ terms.T / total + torch.diag(ridge)
    result = torch.linalg.solve(covariance, (terms * weights) @ change.T / total)
    result[:3] += torch.eye(3, device=result.device)
    return result


def _fit_local(
    guide: torch.Tensor, rest: torch.Tensor, weights: torch.Tensor, radius: int, ridge: float
) -> torch.Tensor:
    """[1, 12, h, w]: around each pixel the affine model of `rest` [1, 3, h, w] on `guide` [1, 3, h, w].

    Guided filter, eq. 14-16, its sums weighted with `weights` [1, 1, h, w]; ridge: its epsilon, which draws matrices to
    0. Windows of few pixels are drawn to 0 as a whole, those of `PIXELS` by half.
    """
    share = _mean(weights, radius)
    safe = share.clamp_min(1e-9)
    center = (weights * guide).sum((2, 3), keepdim=True) / weights.sum()  # against cancellation
    guide = guide - center
    guide_mean, rest_mean = _mean(weights * guide, radius) / safe, _mean(weights * rest, radius) / safe

    def covariance(other: torch.Tensor, other_mean: torch.Tensor) -> torch.Tensor:
        product = (weights * guide)[:, :, None] * other[:, None]
        mean = _mean(product.flatten(1, 2), radius).unflatten(1, (3, 3)) / safe[:, None]
        return (mean - guide_mean[:, :, None] * other_mean[:, None]).permute(0, 3, 4, 1, 2)

    variance = covariance(guide, guide_mean) + ridge * torch.eye(3, device=guide.device)
    matrix = torch.linalg.solve(variance, covariance(rest, rest_mean)).permute(0, 3, 4, 1, 2)
    offset = rest_mean - (matrix * (guide_mean + center)[:, :, None]).sum(1)
    count = share * (2 * radius + 1) ** 2
    trust = count / (count + PIXELS)
    model = torch.cat((matrix.flatten(1, 2), offset), 1) * trust
    # The mean of all windows that hold the pixel; those that see more of the mask count more.
    return _mean(share * model, radius) / (_mean(share, radius) + 1e-12)


def _weights(mask: torch.Tensor, border: int) -> torch.Tensor:
    """[1, 1, h, w], at most 1: what each pixel counts in a fit. Its part in the mask, and little within `border` pixels
    of the mask's edge, where foreground and background are mixed; a mask that is all edge counts as it is."""
    inner = mask
    for _ in range(border):
        inner = -F.max_pool2d(-inner, 3, 1, 1)
    weights = mask * (inner + EDGE_WEIGHT)
    return weights / weights.amax().clamp_min(1e-12)


def _mean(image: torch.Tensor, radius: int) -> torch.Tensor:
    """The mean over windows of (2 radius + 1)² pixels; beyond the frame all is 0.

    By running sums, so that any radius costs the same."""
    total = image.double()  # differences of long sums
    for dim in (-2, -1):
        total = total.cumsum(dim)
        size = total.shape[dim]
        last = torch.arange(size) + radius
        upper = total.index_select(dim, last.clamp(max=size - 1))
        lower = total.index_select(dim, (last - 2 * radius - 1).clamp(min=0))
        lower.narrow(dim, 0, min(radius + 1, size)).zero_()
        total = upper - lower
    return (total / (2 * radius + 1) ** 2).float()


def _blurred(image: torch.Tensor, deviation: float) -> torch.Tensor:
    """[B, C, H, W] under a Gaussian of that standard deviation in pixels; the frame's pixels go on beyond it."""
    if deviation == 0:
        return image
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / deviation).square())
    kernel = kernel / kernel.sum()
    flat = F.pad(image.flatten(0, 1)[:, None], (reach, reach, reach, reach), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel[None, None, :, None]), kernel[None, None, None, :])
    return flat[:, 0].unflatten(0, image.shape[:2])


def _check(
    harmonized: torch.Tensor, composite: torch.Tensor, radius: int, regularization: float, fit_size: int, detail: float
) -> None:
    expected = (composite.shape[0], 3)
    if harmonized.ndim != 4 or tuple(harmonized.shape[:2]) != expected or not harmonized.is_floating_point():
        raise InputError(
            f"The harmonized picture must be a float tensor [{expected[0]}, 3, height, width] in [0, 1], one for each "
            f"composite, not {harmonized.dtype} {list(harmonized.shape)}."
        )
    if not torch.isfinite(harmonized).all():
        raise InputError(
            "The harmonized picture holds NaN or infinity; expected values in [0, 1]. Harmonize again in float32."
        )
    if radius < 1 or radius != int(radius):
        raise InputError(f"The radius must be a whole number of pixels from 1 up, not {radius}.")
    if not regularization > 0:
        raise InputError(f"The regularization must be above 0, not {regularization}; the default is {REGULARIZATION}.")
    if fit_size < 16:
        raise InputError(f"The fit needs at least 16 pixels on its shorter side, not {fit_size}.")
    if not 0 <= detail <= 1:
        raise InputError(f"Detail must lie between 0 (harmonized picture) and 1 (composite's texture), not {detail}.")
