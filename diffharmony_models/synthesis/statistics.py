"""`statistics`: what the pairs of a data set are like, as a table, so that made pairs can be held against real ones."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import decoding, iharmony
from . import looks, sources

SIDE = 256  # pictures are looked at in a square of this side, as they are measured
FAINT = 0.1  # of the logarithm of the saturation: less than a tenth is neither up nor down
LUMA = np.array(looks.LUMA, np.float32)
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET", help="iHarmony4-shaped data sets")
    parser.add_argument("--list", default="IHD_test.txt", help="the list of composites in each (default %(default)s)")
    parser.add_argument("--by-kind", action="store_true", help="a row for each kind of composite that a manifest names")


def run(args: argparse.Namespace) -> int:
    """Prints the table as Markdown."""
    print("| | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for dataset in args.datasets:
        for name, pairs in _groups(dataset, args.list, args.by_kind).items():
            print(f"| {name} | " + " | ".join(row(pairs)) + " |")
    return 0


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


def _groups(dataset: Path, list_file: str, by_kind: bool) -> dict[str, list[Pair]]:
    """The pairs by the name of their row: the data set's, or its and the kind's."""
    kinds = sources.read_manifest(dataset) if by_kind else {}
    groups: dict[str, list[Pair]] = {}
    for triple in iharmony.pairs(dataset, list_file):
        pair = _measured(triple)
        if pair is None:
            continue
        origin = kinds.get(triple.composite.relative_to(dataset).as_posix())
        name = dataset.name or str(dataset)
        groups.setdefault(f"{name}, {origin.kind}" if origin and origin.kind else name, []).append(pair)
    if not groups:
        raise InputError(f"No pair of {dataset} has a foreground and a background; check its masks.")
    return dict(sorted(groups.items()))


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
    return float(np.abs(pixels - (pixels @ LUMA)[:, None]).mean())
