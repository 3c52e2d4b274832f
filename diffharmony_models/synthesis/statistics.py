"""What the pairs of a data set are like, as a table, so that made pairs can be held against real ones."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import decoding, iharmony
from ..luma import LUMA
from . import sources

SIDE = 256  # pictures are looked at in a square of this side, as they are measured
FAINT = 0.1  # of the logarithm of the saturation: less than a tenth is neither up nor down
COLUMNS = (
    "pairs",
    "composite: foreground - background",
    "real: foreground - background",
    "composite: correlation",
    "real: correlation",
    "fMSE: mean",
    "10 %",
    "50 %",
    "90 %",
    "PSNR: mean",
    "10 %",
    "90 %",
    "real more saturated",
    "less",
    "foreground's share",
)


class Pair(NamedTuple):
    """Numbers of one pair. The colours are means [3] of RGB in [0, 1]."""

    pasted: np.ndarray
    true: np.ndarray
    background: np.ndarray
    fmse: float
    mse: float
    saturation: float  # logarithm of the real foreground's over the composite's
    share: float


def row(pairs: list[Pair]) -> list[str]:
    """The cells of one row, in the order of `COLUMNS`."""
    pasted, true, background = (np.stack([getattr(pair, name) for pair in pairs]) for name in Pair._fields[:3])
    fmse = np.array([pair.fmse for pair in pairs])
    psnr = 10 * np.log10(255**2 / np.maximum([pair.mse for pair in pairs], 0.5))
    saturation = np.array([pair.saturation for pair in pairs])

    def correlation(colors: np.ndarray) -> str:
        """Of foregrounds and backgrounds, over pictures and channels."""
        if min(colors.std(), background.std()) == 0:
            return "-"
        return f"{np.corrcoef(colors.ravel(), background.ravel())[0, 1]:.2f}"

    return [
        str(len(pairs)),
        f"{np.abs(pasted - background).mean():.3f}",
        f"{np.abs(true - background).mean():.3f}",
        correlation(pasted),
        correlation(true),
        f"{fmse.mean():.0f}",
        *(f"{np.percentile(fmse, place):.0f}" for place in (10, 50, 90)),
        f"{psnr.mean():.1f}",
        *(f"{np.percentile(psnr, place):.1f}" for place in (10, 90)),
        f"{(saturation > FAINT).mean():.0%}",
        f"{(saturation < -FAINT).mean():.0%}",
        f"{np.mean([pair.share for pair in pairs]):.1%}",
    ]


def groups(dataset: Path, list_file: str) -> dict[str, list[Pair]]:
    """The pairs of a data set by the name of their row: the data set's own and, where its manifest names kinds of
    composites, one more for each kind.

    Raises:
        InputError: no such data set or list, a bad picture, or no pair with a foreground and a background.
    """
    manifest = sources.read_manifest(dataset)
    name = dataset.name or str(dataset)
    every: list[Pair] = []
    kinds: dict[str, list[Pair]] = {}
    for triple in iharmony.pairs(dataset, list_file):
        pair = _measured(triple)
        if pair is None:
            continue
        every.append(pair)
        origin = manifest.get(triple.composite.relative_to(dataset).as_posix())
        if origin and origin.kind:
            kinds.setdefault(f"{name}, {origin.kind}", []).append(pair)
    if not every:
        raise InputError(f"No pair of {dataset} has a foreground and a background; check its masks.")
    return {name: every, **dict(sorted(kinds.items()))}


def _measured(triple: iharmony.Triple) -> Pair | None:
    """None for a pair without a foreground, or without a background."""
    composite, real = (_colors(path) for path in (triple.composite, triple.real))
    mask = decoding.open_mask(triple.mask).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    inside = np.asarray(mask) >= 128
    if not inside.any() or inside.all():
        return None
    squares = np.square((composite - real) * 255).mean(2)
    return Pair(
        pasted=composite[inside].mean(0),
        true=real[inside].mean(0),
        background=real[~inside].mean(0),
        fmse=float(squares[inside].mean()),
        mse=float(squares.mean()),
        saturation=float(np.log((_chroma(real[inside]) + 1e-3) / (_chroma(composite[inside]) + 1e-3))),
        share=float(inside.mean()),
    )


def _colors(path: Path) -> np.ndarray:
    """[256, 256, 3] in [0, 1]."""
    picture = decoding.open_picture(path, SIDE).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32) / 255


def _chroma(pixels: np.ndarray) -> float:
    """How far colours [N, 3] are from their greys, in the mean."""
    return float(np.abs(pixels - (pixels @ np.array(LUMA, np.float32))[:, None]).mean())
