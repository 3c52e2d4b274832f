"""What an evaluation found, as files.

The paper's two tables, a line for each picture, what is missing, and the worst cases as a sheet.
"""

import csv
import heapq
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from . import images
from .errors import InputError

MEASURES = {"psnr": ("PSNR", 2), "mse": ("MSE", 2), "fmse": ("fMSE", 2), "ssim": ("SSIM", 4), "fssim": ("fSSIM", 4)}
"""A score's fields, with their name and the digits after the point in tables."""

SHARES = ((0.05, "0–5 %"), (0.15, "5–15 %"), (1.0, "15–100 %"))
"""The paper's buckets by the foreground's share of the picture: upper edge and name.

An edge belongs to the bucket above it.
"""

PSNR_OF_EQUAL = 100.0
"""What an infinite PSNR (a result equal to the real picture) counts as in an average, in dB."""

WORST = 10
ALL = "all"


@dataclass(frozen=True)
class Score:
    """What one method reached on one pair. `composite`: the list's entry; `share`: foreground pixels ÷ all pixels."""

    composite: str
    subset: str
    share: float
    method: str
    psnr: float
    mse: float
    fmse: float
    ssim: float
    fssim: float


@dataclass(frozen=True)
class Missing:
    """A pair for which a method has no score, and why. `share` is None where the mask could not be read."""

    composite: str
    subset: str
    share: float | None
    method: str
    reason: str


def bucket(share: float) -> str:
    """Name of the bucket of `SHARES` that a foreground share in [0, 1] falls into. ValueError for other numbers."""
    if not 0 <= share <= 1:
        raise InputError(f"A foreground's share is a number from 0 to 1, not {share}")
    return next((name for edge, name in SHARES if share < edge), SHARES[-1][1])


class Report:
    """Collects scores, failures and worst cases of `methods` (in the order of the tables)."""

    def __init__(self, methods: Sequence[str], ranked_by: str):
        """ranked_by: the method whose fMSE decides which cases are the worst."""
        self.methods = list(methods)
        self.ranked_by = ranked_by
        self.scores: list[Score] = []
        self.missing: list[Missing] = []
        self._worst: list[tuple[float, int, list[tuple[str, torch.Tensor]]]] = []

    def offer_sheet_row(self, fmse: float, row: Callable[[], list[tuple[str, torch.Tensor]]]) -> None:
        """Keeps a row of the sheet if its fMSE is among the worst so far; `row` is called only then."""
        number = -len(self.scores) - len(self.missing)  # of equal ones the first stays, and rows are never compared
        if len(self._worst) < WORST:
            heapq.heappush(self._worst, (fmse, number, row()))
        elif fmse > self._worst[0][0]:
            heapq.heapreplace(self._worst, (fmse, number, row()))

    def write(self, folder: Path, about: str) -> None:
        """Writes by_subset, by_share (.md and .csv), images.csv, missing.csv and worst.png, each whole or not at all.

        about: one sentence for the head of the tables, on what was evaluated. OSError where the folder cannot be
        written.
        """
        subsets = sorted({line.subset for line in [*self.scores, *self.missing]})
        by_subset = self._averages(subsets, lambda line: line.subset)
        names = [name for _, name in SHARES]
        by_share = self._averages(names, lambda line: None if line.share is None else bucket(line.share))
        for name, title, rows in (("subset", "By subset", by_subset), ("share", "By foreground share", by_share)):
            header = [name, "method", "images", "missing", *MEASURES]
            _write_text(folder / f"by_{name}.csv", _csv(header, rows))
            _write_text(folder / f"by_{name}.md", f"# {title}\n\n{about}\n\n{_markdown(header, rows)}")
        _write_text(folder / "images.csv", _csv([field.name for field in fields(Score)], map(astuple, self.scores)))
        _write_text(folder / "missing.csv", _csv([field.name for field in fields(Missing)], map(astuple, self.missing)))
        sheet = folder / "worst.png"
        if self._worst:
            rows = [row for _, _, row in sorted(self._worst, reverse=True)]
            title = f"The {len(rows)} worst by fMSE of {self.ranked_by}"
            images.write_image(sheet, images.comparison_sheet(rows, side=256, title=title))
        else:
            sheet.unlink(missing_ok=True)  # one of an earlier run would belong to other tables

    def summary(self) -> str:
        """The averages over all pictures, one line a method."""
        lines = []
        for _, method, count, missing, *values in self._averages([], lambda line: None):
            numbers = "  ".join(
                f"{label} {_number(value, digits)}" for value, (label, digits) in zip(values, MEASURES.values())
            )
            lines.append(f"{method:>12}  {numbers}  ({count} pictures{f', {missing} missing' if missing else ''})")
        return "\n".join(lines)

    def _averages(self, groups: Sequence[str], group_of: Callable) -> list[tuple]:
        """(group, method, scored, missing, *averages), for each group and for all pictures together."""
        rows = []
        for group in [*groups, None]:
            for method in self.methods:
                scores = [s for s in self.scores if s.method == method and (group is None or group_of(s) == group)]
                missing = sum(m.method == method and (group is None or group_of(m) == group) for m in self.missing)
                averages = [_mean(_finite(name, getattr(s, name)) for s in scores) for name in MEASURES]
                rows.append((ALL if group is None else group, method, len(scores), missing, *averages))
        return rows


def _finite(measure: str, value: float) -> float:
    return min(value, PSNR_OF_EQUAL) if measure == "psnr" else value


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _markdown(header: Sequence[str], rows: Iterable[tuple]) -> str:
    group, method, *counts = header[:4]
    lines = [f"| {group} | {method} | {' | '.join(counts)} | {' | '.join(label for label, _ in MEASURES.values())} |"]
    lines.append("|---|---|" + "---:|" * (len(header) - 2))
    for name, method, count, missing, *values in rows:
        numbers = [_number(value, digits) for value, (_, digits) in zip(values, MEASURES.values())]
        lines.append(f"| {' | '.join([_cell(name), _cell(method), str(count), str(missing), *numbers])} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _csv(header: Sequence[str], rows: Iterable[tuple]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(
        [
            ["" if value is None else round(value, 6) if isinstance(value, float) else value for value in row]
            for row in rows
        ]
    )
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    images.write_bytes(path, text.encode("utf-8"))
