"""Changes of a foreground's look: what makes a composite out of a real picture.

Each change is a pure function over foreground pixels, (N, 3) float32 sRGB in [0, 1]; results may leave that range and are clipped once, at the end.
`change_look` draws one at random, as iHarmony4 was made: colours of another foreground (HCOCO, HFlickr), a retoucher's changes
(HAdobe5k), another time of day (Hday2night). It takes no more than some milliseconds for a 256 x 256 picture, so training may call it online.
"""

from __future__ import annotations

import math

import numpy as np

from ..color import LUMA, SPACES, TRANSFERS, linear_to_srgb, rgb_to_ycbcr, saturate, srgb_to_linear, ycbcr_to_rgb
from ..errors import InputError

F = np.float32
REFERENCE_PIXELS = 4096  # of a reference, enough for its statistics
TRIES = 6
COLOURFUL = 0.15  # root mean square of (R - Y, B - Y); a cast may turn the hue of anything greyer
# A draw at least this strong is sought (fMSE; the median of a log-normal): without, half the changes are hardly seen.
WANTED_FMSE = 800.0
# fMSE (0-255) of what is kept: below, nothing is left to learn; above, colours no photo has. The published test set's mean is 1376.
FMSE_BAND = (150.0, 8500.0)
PSNR_BAND = (12.5, 42.0)


# --- the changes: pixels and parameters in, pixels out ------------------------------------------------------------------------------


def exposure(pixels, ev, shoulder=False):
    """`ev` stops in linear light; with `shoulder`, what passes 0.7 is rolled off like film instead of clipped."""
    light = srgb_to_linear(pixels) * F(2**ev)
    if shoulder and ev > 0:
        light = np.where(light < F(0.7), light, 1 - F(0.3) * np.exp((F(0.7) - light) * F(1 / 0.3)))
    return linear_to_srgb(light)


def white_balance(pixels, temperature, tint):
    """Gains in linear light at constant luminance: temperature > 0 is warmer, tint > 0 greener, both in stops."""
    gains = np.array([2 ** (temperature / 2), 2**tint, 2 ** (-temperature / 2)], F)
    gains /= gains @ np.array([0.2126, 0.7152, 0.0722], F)
    return linear_to_srgb(srgb_to_linear(pixels) * gains)


def contrast(pixels, power, pivot=0.5):
    """A sigmoid that keeps 0, 1 and `pivot`: the odds x / (1 - x), relative to the pivot's, to the `power`. > 1 steepens, < 1 flattens."""
    pixels = np.clip(pixels, 0, 1)
    up, down = pixels ** F(power), (1 - pixels) ** F(power)
    return up / (up + down * F((pivot / (1 - pivot)) ** (power - 1)))


def gamma(pixels, power):
    """x^power: > 1 darkens the middle, < 1 lifts it."""
    return np.maximum(pixels, 0) ** F(power)


def saturation(pixels, factor):
    """Colourfulness times `factor` around the luma."""
    return saturate(pixels, factor)


def hue(pixels, degrees):
    """A rotation of Cb and Cr."""
    angle = math.radians(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    return pixels @ ycbcr_to_rgb(rgb_to_ycbcr(np.eye(3)) @ turn + (0, *(0.5 - 0.5 * turn[1:, 1:].sum(0))))


def tone_curve(pixels, knots):
    """A curve through `knots` (values at evenly spaced inputs from 0 to 1) on the luma; the channels' ratios, so hue, are kept."""
    luma = np.maximum(pixels @ LUMA, F(1 / 255))
    return pixels * np.clip(_lookup(luma, _curve(knots)) / luma, 0, 4)[:, None]


def channel_curves(pixels, red, green, blue):
    """A curve of its own for each channel, as photo filters have."""
    channels = zip(np.ascontiguousarray(pixels.T), (red, green, blue))
    return np.stack([_lookup(values, _curve(knots)) for values, knots in channels]).T


def split_tone(pixels, shadows, highlights):
    """Adds one colour (3 offsets) to the shadows and another to the highlights."""
    luma = np.clip(pixels @ LUMA, 0, 1)[:, None]
    return pixels + (1 - luma) ** 2 * np.asarray(shadows, F) + luma**2 * np.asarray(highlights, F)


def color_matrix(pixels, matrix):
    """Each channel a mix of all: `matrix` (3, 3), rows are outputs."""
    return pixels @ np.asarray(matrix, F).T


def levels(pixels, black, white):
    """The range [0, 1] mapped to [black, white]: faded for black > 0 or white < 1, stretched for the reverse."""
    return pixels * F(white - black) + F(black)


CHANGES = {
    f.__name__: f
    for f in (
        exposure,
        white_balance,
        contrast,
        gamma,
        saturation,
        hue,
        tone_curve,
        channel_curves,
        split_tone,
        color_matrix,
        levels,
    )
}


def transfer(pixels, reference, method, space, blend=1.0, seed=0):
    """Colours of the reference pixels (M, 3) by a transfer of `color.TRANSFERS` in a space of `color.SPACES`, mixed in by `blend`."""
    there, back = SPACES[space]
    options = {"seed": seed} if method == "pitie" else {}
    changed = np.clip(back(TRANSFERS[method](there(pixels), there(reference), max_gain=2.5, **options)), 0, 1)
    return pixels + (changed - pixels) * F(blend)


def _curve(knots, size=256):
    curve = np.interp(np.linspace(0, 1, size + 1), np.linspace(0, 1, len(knots)), knots)
    width = size // (len(knots) * 2) * 2 + 1
    return np.convolve(
        np.pad(curve, width // 2, "reflect", reflect_type="odd"), np.full(width, 1 / width), "valid"
    ).astype(F)


def _lookup(values, curve):
    place = np.clip(values, 0, 1) * F(len(curve) - 1)
    index = np.minimum(place.astype(np.int32), len(curve) - 2)
    low = curve[index]
    return low + (curve[index + 1] - low) * (place - index)


# --- drawing their parameters -------------------------------------------------------------------------------------------------------


def _knots(rng, amount, count=5):
    """A monotone curve: slopes log-normal around 1, ends shifted a little."""
    steps = np.exp(rng.normal(0, 0.9 * amount, count - 1))
    curve = np.concatenate([[0], np.cumsum(steps) / steps.sum()])
    low, high = rng.uniform(-0.08, 0.12) * amount, 1 - rng.uniform(-0.08, 0.15) * amount
    return [round(float(v), 4) for v in low + curve * (high - low)]


def _uniform(rng, low, high, size=None):
    value = rng.uniform(low, high, size)
    return round(float(value), 4) if size is None else np.round(value, 4).tolist()


def _sided(rng, least, most):
    """A number of either sign whose size lies in [least, most]."""
    return round(float(rng.choice([-1, 1]) * rng.uniform(least, most)), 4)


# name: (weight, parameters for a generator and a strength)
DRAWS = {
    "exposure": (3.0, lambda r, s: {"ev": _sided(r, 0.4 * s, 1.5 * s), "shoulder": bool(r.random() < 0.7)}),
    "white_balance": (
        3.0,
        lambda r, s: {"temperature": _sided(r, 0.25 * s, 1.3 * s), "tint": round(float(r.normal(0, 0.15 * s)), 4)},
    ),
    "contrast": (
        2.0,
        lambda r, s: {"power": round(2 ** _sided(r, 0.3 * s, 1.1 * s), 4), "pivot": _uniform(r, 0.25, 0.75)},
    ),
    "gamma": (1.5, lambda r, s: {"power": round(2 ** _sided(r, 0.3 * s, 1.1 * s), 4)}),
    "saturation": (
        2.0,
        lambda r, s: {
            "factor": round(
                max(0.0, 1 + (_uniform(r, -0.8, -0.25) if r.random() < 0.5 else _uniform(r, 0.25, 0.9)) * s), 4
            )
        },
    ),
    "hue": (0.6, lambda r, s: {"degrees": _sided(r, 5 * s, 25 * s)}),
    "tone_curve": (1.5, lambda r, s: {"knots": _knots(r, s)}),
    "channel_curves": (
        1.5,
        lambda r, s: {"red": _knots(r, 0.7 * s), "green": _knots(r, 0.7 * s), "blue": _knots(r, 0.7 * s)},
    ),
    "split_tone": (
        1.0,
        lambda r, s: {
            "shadows": _uniform(r, -0.15 * s, 0.15 * s, 3),
            "highlights": _uniform(r, -0.15 * s, 0.15 * s, 3),
        },
    ),
    "color_matrix": (1.0, lambda r, s: {"matrix": _matrix(r, 0.12 * s)}),
    "levels": (
        1.5,
        lambda r, s: {"black": _uniform(r, -0.1 * s, 0.3 * s), "white": round(1 - _uniform(r, -0.12, 0.35) * s, 4)},
    ),
}
_NAMES = list(DRAWS)
_WEIGHTS = np.array([w for w, _ in DRAWS.values()]) / sum(w for w, _ in DRAWS.values())

_SHARE = {1: 1.1, 2: 1.0, 3: 0.85, 4: 0.75}

# Four kinds, equally often; the covariance kind has two members.
_TRANSFER_KINDS = (
    (("reinhard", ("lab", "lalphabeta", "rgb")),),
    (("xiao", ("rgb",)), ("monge_kantorovitch", ("rgb", "lab"))),
    (("fecker", ("ycbcr", "lab", "rgb")),),
    (("pitie", ("rgb", "lab")),),
)


def _matrix(rng, amount):
    matrix = rng.normal(0, amount, (3, 3))
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, rng.normal(1, amount, 3) - matrix.sum(1))
    return np.round(matrix, 4).tolist()


def draw_retouch(rng, strength=1.0):
    """One to four changes as a list of {"op": name, **parameters}, each the milder the more there are; one time in eight another time of day."""
    if rng.random() < 0.125:
        return _another_hour(rng, strength)
    count = int(rng.choice([1, 2, 3, 4], p=[0.1, 0.3, 0.35, 0.25]))
    names = rng.choice(_NAMES, count, replace=False, p=_WEIGHTS)
    return [{"op": str(name), **DRAWS[name][1](rng, strength * _SHARE[count])} for name in names]


def _another_hour(rng, strength):
    ev, temperature = (
        (-_uniform(rng, 0.7, 1.8), -_uniform(rng, 0.1, 0.8))
        if rng.random() < 0.5
        else (_sided(rng, 0.2, 0.9), _uniform(rng, 0.4, 1.2))
    )
    return [
        {"op": "exposure", "ev": round(ev * strength, 4), "shoulder": True},
        {"op": "white_balance", "temperature": round(temperature * strength, 4), "tint": _uniform(rng, -0.1, 0.1)},
        {"op": "saturation", "factor": _uniform(rng, 0.5, 1.1)},
        {"op": "contrast", "power": _uniform(rng, 0.8, 1.3), "pivot": _uniform(rng, 0.3, 0.6)},
    ]


def draw_transfer(rng, strength=1.0):
    """One transfer as {"op": "transfer", "method", "space", "blend", "seed"}."""
    kind = _TRANSFER_KINDS[rng.integers(len(_TRANSFER_KINDS))]
    method, spaces = kind[rng.integers(len(kind))]
    blend = round(min(1.0, strength * (1.0 if rng.random() < 0.5 else rng.uniform(0.5, 1.0))), 4)
    return {
        "op": "transfer",
        "method": method,
        "space": str(rng.choice(spaces)),
        "blend": blend,
        "seed": int(rng.integers(2**31)),
    }


def apply(pixels, changes, reference=None):
    """Runs a list of changes as the `draw_*` functions give them. pixels (N, 3) in [0, 1] → (N, 3), clipped to [0, 1]."""
    for change in changes:
        options = {k: v for k, v in change.items() if k != "op"}
        pixels = (
            transfer(pixels, reference, **options)
            if change["op"] == "transfer"
            else CHANGES[change["op"]](pixels, **options)
        )
    return np.clip(pixels, 0, 1).astype(F, copy=False)


def draw_field(rng, places, width):
    """A smooth weight in [0, 1], (N, 1), for the pixels at flat indices `places` of a picture: a ramp or a soft spot over their bounding box."""
    rows, columns = np.divmod(places.astype(np.int32), np.int32(width))
    y = (rows - rows[0]) * F(1 / max(1, rows[-1] - rows[0])) - F(rng.uniform(0.2, 0.8))
    left, right = columns.min(), columns.max()
    x = (columns - left) * F(1 / max(1, right - left)) - F(rng.uniform(0.2, 0.8))
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        t = (x * F(math.cos(angle)) + y * F(math.sin(angle))) * F(rng.uniform(0.8, 1.6)) + F(0.5)
    else:
        t = 1 - np.sqrt(x * x + y * y) * F(rng.uniform(0.9, 1.6))
    t = np.clip(t, 0, 1)
    return (t * t * (3 - 2 * t)).astype(F)[:, None]


# --- one composite ------------------------------------------------------------------------------------------------------------------


def change_look(image, mask, rng, reference=None, strength=1.0):
    """A composite: the picture with its foreground's look changed at random.

    image: (H, W, 3) float32 sRGB in [0, 1], not changed in place. mask: (H, W) in [0, 1] or bool, foreground where >= 0.5. rng: numpy Generator.
    reference: (image, mask) of another picture whose foreground may lend its colours, or None (then only retouching). strength: 1.0 is as
    strong as the published data; scales every parameter.

    Returns (composite, note): composite (H, W, 3) float32 in [0, 1], the background bit by bit the picture's; note a dict for a manifest with
    "kind" (retouch or transfer), "changes" (operations with their parameters), "light" (whether a local gradient weights them), "fmse", "psnr" and "plausible":
    False where no draw gave a plausible picture and the last resort, a mere change of exposure, was taken.
    Raises ValueError for an empty mask or shapes that do not fit.
    """
    inside = np.asarray(mask) >= 0.5
    if image.ndim != 3 or image.shape[2] != 3 or inside.shape != image.shape[:2]:
        raise InputError(f"image must be HxWx3 and mask HxW of one size, got {image.shape} and {inside.shape}")
    places = np.flatnonzero(inside)
    pixels = image.reshape(-1, 3)[places]
    if not len(pixels):
        raise InputError("the mask is empty: no pixel of it reaches 0.5; give a picture with a foreground")
    lent = None if reference is None else _reference_pixels(*reference, rng)
    wanted = math.exp(rng.normal(math.log(WANTED_FMSE), 0.8)) * strength**2
    best = None
    for _ in range(TRIES):
        kind, changes = _draw(rng, strength, lent is not None)
        changed = apply(pixels, changes, lent)
        light = bool(rng.random() < (0.12 if kind == "transfer" else 0.25))
        if light:
            changed = pixels + (changed - pixels) * draw_field(rng, places, inside.shape[1])
        fmse, psnr = measure(pixels, changed, inside.size)
        if plausible(pixels, changed, fmse, psnr, strength) and (best is None or fmse > best[0]):
            best = fmse, psnr, changed, kind, changes, light
        if best is not None and best[0] >= wanted:
            break
    found = best is not None
    if not found:
        changes = [{"op": "exposure", "ev": -0.6 if pixels.mean() > 0.4 else 0.6, "shoulder": True}]
        changed = apply(pixels, changes)
        best = *measure(pixels, changed, inside.size), changed, "retouch", changes, False
    fmse, psnr, changed, kind, changes, light = best
    composite = np.array(image, F, order="C")
    composite.reshape(-1, 3)[places] = changed
    note = {
        "kind": kind,
        "changes": changes,
        "light": light,
        "fmse": round(fmse, 1),
        "psnr": round(psnr, 2),
        "plausible": found,
    }
    return composite, note


def _draw(rng, strength, with_reference):
    if with_reference and rng.random() < 0.55:
        changes = [draw_transfer(rng, strength)]
        if rng.random() < 0.15:
            changes += draw_retouch(rng, 0.5 * strength)[:1]
        return "transfer", changes
    return "retouch", draw_retouch(rng, strength)


def _reference_pixels(image, mask, rng):
    places = np.flatnonzero(np.asarray(mask) >= 0.5)
    if len(places) < 16:
        return None
    if len(places) > REFERENCE_PIXELS:
        places = places[rng.integers(len(places), size=REFERENCE_PIXELS)]
    return np.asarray(image, F).reshape(-1, 3)[places]


def measure(pixels, changed, area):
    """(fMSE, PSNR) in 0-255 of foreground pixels (N, 3) in a picture of `area` pixels whose background is untouched."""
    difference = (changed - pixels).ravel()
    total = float(difference @ difference) * 255.0**2 / 3
    return total / len(pixels), 10 * math.log10(255.0**2 / max(total / area, 1e-9))


def plausible(pixels, changed, fmse, psnr, strength=1.0):
    """Whether a change could pass for another photo of the thing: strength within bounds, little newly clipped, texture neither
    drowned in noise nor wiped out, light and dark in their old order, a strong hue not turned into its opposite, colours not shrill."""
    if not (FMSE_BAND[0] * strength**2 <= fmse <= FMSE_BAND[1] and PSNR_BAND[0] <= psnr <= PSNR_BAND[1]):
        return False
    if _clipped(changed) > _clipped(pixels) + 0.10:
        return False
    luma, changed_luma = pixels @ LUMA, changed @ LUMA
    before, after = np.abs(np.diff(luma)).mean(), np.abs(np.diff(changed_luma)).mean()  # neighbours in a row, mostly
    if after > 2.5 * before + 0.01 or after < 0.2 * before:
        return False
    luma, changed_luma = luma - luma.mean(), changed_luma - changed_luma.mean()
    size = math.sqrt(float(luma @ luma) * float(changed_luma @ changed_luma))
    if size > 1e-4 * len(pixels) and float(luma @ changed_luma) < 0.6 * size:
        return False
    chroma, changed_chroma = (
        pixels[:, ::2] - pixels @ LUMA[:, None],
        changed[:, ::2] - changed @ LUMA[:, None],
    )  # multiples of Cr and Cb
    power = float(chroma.ravel() @ chroma.ravel())
    alike = float(chroma.ravel() @ changed_chroma.ravel()) / max(power, 1e-9)
    if power > COLOURFUL**2 * len(pixels) and alike < 0.05:
        return False
    return _shrillness(changed) < max(0.45, _shrillness(pixels) + 0.1)


def _clipped(pixels):
    low, high = pixels <= F(1 / 255), pixels >= F(254 / 255)
    return (np.count_nonzero(low) + np.count_nonzero(high)) / pixels.size


def _shrillness(pixels):
    """Mean distance of the strongest channel from the weakest."""
    red, green, blue = pixels.T
    return float((np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)).mean())
