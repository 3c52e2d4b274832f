"""An evaluation from a list of pairs to tables: every pair is read, harmonized and scored, one after another."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError, printable, reason
from ..files.iharmony import Triple, local_light, pairs
from .report import BASELINE, Missing, Report
from .scoring import Pair, load, score
from .sources import TRANSFERS, Results, Source, baselines

logger = logging.getLogger(__name__)

_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Settings:
    """dataset: a folder in iHarmony4's layout. pairs: the list of composites, a path from there or any path. results:
    the folder for tables and the worst cases. limit: only the first so many pairs. native_size: also at the pictures'
    own size.
    """

    dataset: Path
    pairs: Path = Path("IHD_test.txt")
    results: Path = Path("runs/evaluate")
    limit: int | None = None
    native_size: bool = False


def evaluate(settings: Settings, source_of: Callable[[Sequence[Triple]], Source]) -> int:
    """Evaluates and writes the tables, the lists and the sheet into the folder for results.

    Args:
        source_of: makes of the pairs what gives the results that are scored beside the baselines.

    Returns:
        The exit code: 0, or 2 where pairs could not be scored. They are named in the log and in `missing.csv`, and the
        tables count them.

    Raises:
        InputError: bad lists and checkpoints, before anything is scored.
        OSError: a results folder that cannot be written.
    """
    triples = pairs(settings.dataset, settings.pairs)
    entries = [triple.composite.relative_to(settings.dataset).as_posix() for triple in triples]
    twice = [entry for entry, number in Counter(entries).items() if number > 1]
    if twice:
        raise InputError(
            f"{settings.pairs} names {len(twice)} composites more than once ({_some(twice)}); remove the repeated lines"
        )
    triples, entries = triples[: settings.limit], entries[: settings.limit]
    light = local_light(settings.dataset)
    settings.results.mkdir(parents=True, exist_ok=True)

    source = source_of(triples)
    methods = [BASELINE, *TRANSFERS, *source.methods]
    sizes = ["256", "full"] if settings.native_size else ["256"]
    local = {entry: light[entry] for entry in entries if entry in light}
    report = Report(methods, source.methods[0], sizes, local)
    for entry, triple in tqdm(list(zip(entries, triples)), desc="evaluate", unit="pair"):
        try:
            loaded = load(entry, triple, settings.native_size)
        except Exception as error:  # one picture's fault, of whatever kind, is that picture's
            why = reason(error, logger)
            report.missing += [
                Missing(entry, triple.subset, None, method, size, why) for size in sizes for method in methods
            ]
            continue
        for pair in loaded:
            _score(pair, chain(baselines(pair), source.results(pair)), report)
    about = (
        f"{printable(str(settings.pairs))}, {len(triples)} pairs; {printable(source.about)}. 8 bits; the foreground on"
        " the real background. Averages over pictures; `missing` ones could not be scored and are in no average. fMSE"
        " ratio: to the composite's; worst: the lowest gain of PSNR over the composite of any pair, in dB; worse: how"
        " many pairs have a lower PSNR than the composite."
    )
    print(report.write(settings.results, about))
    logger.info("Tables and worst cases: %s", settings.results)
    if not report.missing:
        return 0
    lost = sorted({f"{line.composite} ({line.method}): {line.reason}" for line in report.missing})
    number = len({line.composite for line in report.missing})
    logger.error(
        "%d of %d pairs could not be scored in full (all of them are in %s):\n%s",
        number, len(triples), settings.results / "missing.csv", _some(lost, "\n"),
    )  # fmt: skip
    return 2


def _score(pair: Pair, results: Results, report: Report) -> None:
    row, worst = [], None
    for method, result in results:
        try:
            if isinstance(result, Exception):
                raise result
            value, picture = score(pair, result, method)
        except Exception as error:
            why = reason(error, logger)
            report.missing.append(Missing(pair.entry, pair.triple.subset, pair.share, method, pair.size, why))
            continue
        report.scores.append(value)
        if pair.size != "256":
            continue
        worst = value.fmse if method == report.ranked_by else worst
        if method not in TRANSFERS:
            row.append((f"{method} {value.psnr:.1f} dB, {value.fmse:.0f}", picture))
    if worst is not None:
        mask = (f"mask {pair.share:.1%}", pair.mask)
        real = (f"real {Path(pair.entry).stem}", pair.real)
        report.offer_sheet_row(worst, lambda: [row[0], mask, *row[1:], real])


def _some(names: Sequence[str], separator: str = "; ") -> str:
    more = len(names) - _NAMED_AT_MOST
    return separator.join([*names[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])])
