"""What an evaluation found, as files: tables by subset, by the foreground's share and by its light, a line for each
picture, what is missing, the worst cases as a sheet.
"""

import csv
import heapq
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import product
from pathlib import Path

import torch

from ..errors import InputError
from ..files import images, sheets, writing

MEASURES = {"psnr": ("PSNR", 2), "mse": ("MSE", 2), "fmse": ("fMSE", 2), "ssim": ("SSIM", 4), "fssim": ("fSSIM", 4)}
"""A score's fields, with their name and the digits after the point in tables."""

BASELINE = "composite"
"""The method against which the others are held."""

COLUMNS = {
    "psnr": MEASURES["psnr"],
    "mse": MEASURES["mse"],
    "fmse": MEASURES["fmse"],
    "fmse_ratio": ("fMSE ratio", 3),
    "ssim": MEASURES["ssim"],
    "fssim": MEASURES["fssim"],
    "worst": ("worst", 2),
    "worse": ("worse", 0),
}
"""The columns of tables, with their name and the digits after the point: averages of the measures, and comparisons
with the baseline on the pairs that both have a score for. These are the average fMSE ÷ the baseline's; the lowest gain
of PSNR of any pair, in dB; how many pairs have a lower PSNR than the baseline.
"""

SIZES = {"256": "At 256×256", "full": "At full size"}
"""The sizes at which results are scored, and the headings of their tables."""

LIGHTS = {True: "local light", False: "even light"}
"""The groups by whether light varies over the foreground."""

SHARES = ((0.05, "0–5 %"), (0.15, "5–15 %"), (1.0, "15–100 %"))
"""The paper's buckets by the foreground's share of the picture: upper edge and name. An edge belongs to the bucket
above it.
"""

PSNR_OF_EQUAL = 100.0
"""What an infinite PSNR (a result equal to the real picture) counts as in an average, in dB."""

WORST = 10
ALL = "all"


@dataclass(frozen=True)
class Score:
    """What one method reached on one pair. `composite`: the list's entry; `share`: foreground pixels ÷ all pixels;
    `size`:
    of `SIZES`.
    """

    composite: str
    subset: str
    share: float
    method: str
    size: str
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
    size: str
    reason: str


def bucket(share: float) -> str:
    """Name of the bucket of `SHARES` that a foreground share in [0, 1] falls into. ValueError for other numbers."""
    if not 0 <= share <= 1:
        raise InputError(f"A foreground's share is a number from 0 to 1, not {share}")
    return next((name for edge, name in SHARES if share < edge), SHARES[-1][1])


class Report:
    """Collects scores, failures and worst cases of `methods` (in the order of the tables)."""

    def __init__(
        self,
        methods: Sequence[str],
        ranked_by: str,
        sizes: Sequence[str] = ("256",),
        local: Mapping[str, bool] | None = None,
    ):
        """ranked_by: the method whose fMSE decides which cases are the worst. sizes: of `SIZES`. local: whether light
        varies over the foreground, by composite, where that is known.
        """
        self.methods = list(methods)
        self.ranked_by = ranked_by
        self.sizes = list(sizes)
        self.scores: list[Score] = []
        self.missing: list[Missing] = []
        self._local = dict(local or {})
        self._worst: list[tuple[float, int, list[tuple[str, torch.Tensor]]]] = []

    def offer_sheet_row(self, fmse: float, row: Callable[[], list[tuple[str, torch.Tensor]]]) -> None:
        """Keeps a row of the sheet if its fMSE is among the worst so far; `row` is called only then."""
        number = -len(self.scores) - len(self.missing)  # of equal ones the first stays, and rows are never compared
        if len(self._worst) < WORST:
            heapq.heappush(self._worst, (fmse, number, row()))
        elif fmse > self._worst[0][0]:
            heapq.heapreplace(self._worst, (fmse, number, row()))

    def write(self, folder: Path, about: str) -> str:
        """Writes by_subset, by_share and, where the light is known, by_light (.md and .csv), images.csv, missing.csv
        and worst.png, each whole or not at all.

        about: one sentence for the head of the tables, on what was evaluated. Returns the tables' Markdown. OSError
        where the folder cannot be written.
        """
        texts = [f"{about}\n"]
        for name, title, groups, group_of in self._groupings():
            rows = self._averages(groups, group_of)
            header = [name, "method", "size", "images", "missing", *COLUMNS]
            _write_text(folder / f"by_{name}.csv", _csv(header, rows))
            body = "\n".join(
                f"## {SIZES[size]}\n\n{_markdown(name, [row for row in rows if row[2] == size])}" for size in self.sizes
            )
            _write_text(folder / f"by_{name}.md", f"# {title}\n\n{about}\n\n{body}")
            texts.append(f"# {title}\n\n{body}")
        _write_text(folder / "images.csv", _csv([field.name for field in fields(Score)], map(astuple, self.scores)))
        _write_text(folder / "missing.csv", _csv([field.name for field in fields(Missing)], map(astuple, self.missing)))
        stale = [] if self._local else [folder / "by_light.csv", folder / "by_light.md"]
        sheet = folder / "worst.png"
        if self._worst:
            worst = [row for _, _, row in sorted(self._worst, reverse=True)]
            title = f"The {len(worst)} worst by fMSE of {self.ranked_by}; each with its PSNR and fMSE"
            images.write_image(sheet, sheets.comparison_sheet(worst, side=256, title=title))
        else:
            stale.append(sheet)
        for path in stale:  # those of an earlier run would belong to other tables
            path.unlink(missing_ok=True)
        return "\n".join(texts)

    def _groupings(self) -> list[tuple[str, str, list[str], Callable[[Score | Missing], str | None]]]:
        """(name, title, groups, which group a line falls into) of each table."""
        subsets = sorted({score.subset for score in self.scores} | {line.subset for line in self.missing})
        shares = [name for _, name in SHARES]
        found = [
            ("subset", "By subset", subsets, lambda line: line.subset),
            ("share", "By foreground share", shares, lambda line: None if line.share is None else bucket(line.share)),
        ]
        if self._local:
            lights = list(LIGHTS.values())
            local = {composite: LIGHTS[varies] for composite, varies in self._local.items()}
            found.append(("light", "By light", lights, lambda line: local.get(line.composite)))
        return found

    def _averages(self, groups: Sequence[str], group_of: Callable[[Score | Missing], str | None]) -> list[tuple]:
        """(group, method, size, scored, missing, *averages, *comparisons): at each size, for each group and for all
        pictures together.
        """
        baseline = {(s.composite, s.size): s for s in self.scores if s.method == BASELINE}
        scores: dict[tuple[str | None, str, str], list[Score]] = defaultdict(list)
        missing: Counter[tuple[str | None, str, str]] = Counter()
        for score in self.scores:
            for group in (group_of(score), ALL):
                scores[group, score.method, score.size].append(score)
        for line in self.missing:
            missing.update((group, line.method, line.size) for group in (group_of(line), ALL))
        rows, seen = [], {key[0] for key in (*scores, *missing)}
        found = [group for group in groups if group in seen]
        for size, group, method in product(self.sizes, [*found, ALL], self.methods):
            own = scores.get((group, method, size), [])
            values = {name: _mean(_finite(name, getattr(s, name)) for s in own) for name in MEASURES}
            values |= _comparisons([(s, baseline[s.composite, size]) for s in own if (s.composite, size) in baseline])
            count = missing[group, method, size]
            rows.append((group, method, size, len(own), count, *(values[name] for name in COLUMNS)))
        return rows


def _comparisons(pairs: Sequence[tuple[Score, Score]]) -> dict[str, float | int | None]:
    """How a method's scores compare with the baseline's on the same pictures; None where there are none."""
    if not pairs:
        return dict.fromkeys(("fmse_ratio", "worst", "worse"))
    gains = [_finite("psnr", score.psnr) - _finite("psnr", before.psnr) for score, before in pairs]
    total = math.fsum(before.fmse for _, before in pairs)
    ratio = math.fsum(score.fmse for score, _ in pairs) / total if total else None
    return {"fmse_ratio": ratio, "worst": min(gains), "worse": sum(gain < 0 for gain in gains)}


def _finite(measure: str, value: float) -> float:
    return min(value, PSNR_OF_EQUAL) if measure == "psnr" else value


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _markdown(group: str, rows: Iterable[tuple]) -> str:
    columns = COLUMNS.values()
    lines = [
        f"| {group} | method | images | missing | {' | '.join(label for label, _ in columns)} |",
        "|---|---|---:|---:|" + "---:|" * len(columns),
    ]
    for name, method, _, count, missing, *values in rows:
        numbers = [_number(value, digits) for value, (_, digits) in zip(values, columns)]
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
    writing.write_bytes(path, text.encode("utf-8"))
