"""Figures of runs as Markdown tables. MB are 10⁶ bytes."""

import statistics
from collections.abc import Sequence

import torch

from ..evaluation import metrics

EQUAL = 200.0  # dB that stand for pictures without any difference


def summary(runs: list[dict]) -> dict:
    """Median seconds, highest peak in MB (None where it is not known), and the runs themselves.

    runs: "seconds" and "peak", in bytes or None, of each.
    """
    peaks = [run["peak"] / 1e6 if run["peak"] else None for run in runs]
    known = [peak for peak in peaks if peak is not None]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_mb": max(known) if len(known) == len(peaks) else None,
        "runs_seconds": [run["seconds"] for run in runs],
        "runs_peak_mb": peaks,
    }


def ratios(ours: dict, other: dict) -> dict:
    """Seconds and peak of one `summary` by those of another; None where it is not known."""
    known = ours["peak_mb"] and other["peak_mb"]
    return {
        "ratio_seconds": ours["seconds"] / other["seconds"],
        "ratio_peak": ours["peak_mb"] / other["peak_mb"] if known else None,
    }


def decibels(image: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR of two images [1, 3, H, W] in [0, 1], at most `EQUAL`."""
    return min(EQUAL, metrics.psnr(image * 255, other * 255).item())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(name: str, summary: dict) -> tuple[str, str, str]:
    """A `summary` as a row."""
    return name, number(summary["seconds"], 1), number(summary["peak_mb"], 0)


def ratio_row(name: str, bounds: str, ratios: dict, digits: int) -> tuple[str, ...]:
    """`ratios` as a row that stands out."""
    return f"**{name}**{bounds}", *(f"**{number(value, digits)}**" for value in ratios.values())


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
