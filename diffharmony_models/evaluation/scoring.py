"""Scores harmonized pictures against the real ones, as the paper does on iHarmony4.

Everything is scored at 256×256 (bilinear, antialiased), and on demand at the pictures' own size as well; rounded to 8
bits, and with the result's foreground put on the real background first. The untouched composite and the transfers of
the background's colours by Reinhard and by Monge and Kantorovitch are scored beside the results in every run.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import color, geometry
from ..cli.harmonize import dtype, file_or_folder, find_device, picture_seed, resolution, steps
from ..errors import InputError, printable, reason
from ..files import images
from ..files.iharmony import COMPOSITES, Triple, local_light, pairs
from ..numbers import whole
from . import metrics
from .report import BASELINE, Missing, Report, Score

logger = logging.getLogger(__name__)

SIZE = (256, 256)
TRANSFERS = {"reinhard": color.reinhard, "monge-kantorovitch": color.monge_kantorovitch}
METHODS = ("colors", "both", "diffusion")
ENDINGS = ("transfer", "paper")
OUTPUTS = "outputs"
_NAMED_AT_MOST = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    parser.add_argument(
        "dataset_root",
        type=file_or_folder,
        help="folder in iHarmony4's layout (composite_images, masks, real_images by subset)",
    )
    parser.add_argument(
        "--list",
        type=file_or_folder,
        default="IHD_test.txt",
        help="the list of composites: a path from the root, or any path (%(default)s)",
    )
    parser.add_argument(
        "--results",
        type=file_or_folder,
        default=Path("runs/evaluate"),
        help="folder for tables and the worst cases (%(default)s)",
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="only the first N pairs of the list")
    parser.add_argument(
        "--native-size",
        action="store_true",
        help="harmonize and score at the pictures' own size too, in tables of their own",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--outputs",
        type=file_or_folder,
        metavar="FOLDER",
        help="score these pictures (named as the composites), run no checkpoint",
    )
    what.add_argument("--checkpoint", type=file_or_folder, help="file or folder (the bundled checkpoint)")
    run = parser.add_argument_group("running a checkpoint")
    run.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="colors: the colour regressor; diffusion: the paper's stages; both: one after the other. The worst cases "
        "are the first one's (all that the checkpoint has parts for)",
    )
    run.add_argument(
        "--ending",
        choices=[*ENDINGS, "both"],
        help="which ending of the stages is scored (both, or transfer where there is no refiner)",
    )
    run.add_argument(
        "--resolution", metavar="R", type=resolution, default=0, help="stage 1's resolution (0: the checkpoint's own)"
    )
    run.add_argument("--steps", metavar="N", type=steps, default=0, help="sampling steps (the checkpoint's own)")
    run.add_argument("--dtype", metavar="T", type=dtype, help="float32, bfloat16 or float16 (what suits the device)")


def run(args: argparse.Namespace) -> int:
    """Evaluates and writes the tables, the lists and the sheet into `args.results`.

    Returns:
        The exit code: 0, or 2 where pairs could not be scored. They are named in the log and in `missing.csv`, and the
        tables count them.

    Raises:
        InputError: bad lists and checkpoints, before anything is scored.
        OSError: a results folder that cannot be written.
    """
    triples = pairs(args.dataset_root, args.list)
    entries = [triple.composite.relative_to(args.dataset_root).as_posix() for triple in triples]
    twice = [entry for entry, number in Counter(entries).items() if number > 1]
    if twice:
        raise InputError(
            f"{args.list} names {len(twice)} composites more than once ({_some(twice)}); remove the repeated lines"
        )
    triples, entries = triples[: args.limit], entries[: args.limit]
    light = local_light(args.dataset_root)
    args.results.mkdir(parents=True, exist_ok=True)

    source = _Pictures(args, triples) if args.outputs else _Engine(args)
    methods = [BASELINE, *TRANSFERS, *source.methods]
    sizes = ["256", "full"] if args.native_size else ["256"]
    local = {entry: light[entry] for entry in entries if entry in light}
    report = Report(methods, source.methods[0], sizes, local)
    for entry, triple in tqdm(list(zip(entries, triples)), desc="evaluate", unit="pair"):
        try:
            loaded = load(entry, triple, args.native_size)
        except Exception as error:  # one picture's fault, of whatever kind, is that picture's
            why = reason(error, logger)
            report.missing += [
                Missing(entry, triple.subset, None, method, size, why) for size in sizes for method in methods
            ]
            continue
        for pair in loaded:
            _score(pair, chain(_baselines(pair), source.results(pair)), report)
    about = (
        f"{printable(str(args.list))}, {len(triples)} pairs; {printable(source.about)}. 8 bits; the foreground on the"
        " real background. Averages over pictures; `missing` ones could not be scored and are in no average. fMSE"
        " ratio: to the composite's; worst: the lowest gain of PSNR over the composite of any pair, in dB; worse: how"
        " many pairs have a lower PSNR than the composite."
    )
    print(report.write(args.results, about))
    logger.info("Tables and worst cases: %s", args.results)
    if not report.missing:
        return 0
    lost = sorted({f"{line.composite} ({line.method}): {line.reason}" for line in report.missing})
    number = len({line.composite for line in report.missing})
    logger.error(
        "%d of %d pairs could not be scored in full (all of them are in %s):\n%s",
        number, len(triples), args.results / "missing.csv", _some(lost, "\n"),
    )  # fmt: skip
    return 2


@dataclass(frozen=True)
class Pair:
    """One pair as it is scored. Images B3HW in [0, 1] in steps of 1/255, masks B1HW in {0, 1}.

    share: foreground pixels ÷ all pixels, at 256×256. size: "256", or "full" for the pictures' own.
    """

    entry: str
    triple: Triple
    composite: torch.Tensor
    mask: torch.Tensor
    real: torch.Tensor
    share: float
    size: str = "256"


def quantized(image: torch.Tensor) -> torch.Tensor:
    """An image in [0, 1] as if it had been saved with 8 bits and read again. InputError for NaN and infinite values."""
    if not torch.isfinite(image).all():
        raise InputError("the result holds NaN or infinite values; try --dtype float32, or another checkpoint")
    return image.detach().float().cpu().mul(255).round().clamp(0, 255) / 255


def prepared(image: torch.Tensor) -> torch.Tensor:
    """B3HW in [0, 1] of any size to 256×256 in steps of 1/255."""
    return quantized(geometry.resize(image.float(), SIZE))


def load(entry: str, triple: Triple, native_size: bool = False) -> list[Pair]:
    """The pair at 256×256 and, with `native_size`, as it is in its files. InputError for files that make no pair."""
    composite, real = (images.read_image(path).pixels for path in (triple.composite, triple.real))
    mask = images.read_mask(triple.mask)
    for path, picture in ((triple.mask, mask), (triple.real, real)):
        if picture.shape[-2:] != composite.shape[-2:]:
            raise InputError(
                f"{path} is {_size(picture)} but {triple.composite} is {_size(composite)}; composite, mask and"
                " real picture must be of one size"
            )
    small = geometry.binarize(geometry.resize(mask, SIZE))
    if geometry.is_empty(small).any():
        raise InputError(f"{triple.mask} has no foreground at {SIZE[1]}x{SIZE[0]}")
    share = small.mean().item()
    loaded = [Pair(entry, triple, prepared(composite), small, prepared(real), share)]
    if native_size:
        loaded.append(
            Pair(entry, triple, quantized(composite), geometry.binarize(mask), quantized(real), share, "full")
        )
    return loaded


def score(pair: Pair, result: torch.Tensor, method: str) -> tuple[Score, torch.Tensor]:
    """Measures one result against the real picture.

    As in the published evaluation, what stands outside the mask is replaced by the real picture first: JPEG traces in
    the composite's background are not the method's.

    Args:
        result: 1 3 H W in [0, 1], of any size at 256×256, of the pair's at full size.

    Returns:
        The score, and the picture it was measured on (1 3 H W of the pair's size, in [0, 1]).

    Raises:
        InputError: a result of another size at full size, or with values that are not finite.
    """
    size = pair.composite.shape[-2:]
    if pair.size == "full" and result.shape[-2:] != size:
        raise InputError(
            f"the result is {_size(result)}, the composite {_size(pair.composite)}; leave out --native-size, or give"
            " results of the composites' sizes"
        )
    picture = quantized(geometry.resize(quantized(result), size))
    picture = geometry.paste(picture, pair.real, pair.mask)
    image, real = (picture * 255).round(), (pair.real * 255).round()
    # Channel by channel, for at full size SSIM's planes would fill the memory.
    similarities = [metrics.ssim_map(image[:, [channel]], real[:, [channel]]) for channel in range(3)]
    values = (
        metrics.psnr(image, real),
        metrics.mse(image, real),
        metrics.fmse(image, real, pair.mask),
        torch.stack([metrics.mean_ssim(each) for each in similarities]).mean(),
        torch.stack([metrics.foreground_ssim(each, pair.mask) for each in similarities]).mean(),
    )
    numbers = (value.item() for value in values)
    return Score(pair.entry, pair.triple.subset, pair.share, method, pair.size, *numbers), picture


def _baselines(pair: Pair) -> Iterator[tuple[str, torch.Tensor | Exception]]:
    """(method, result or what went wrong): the composite as it is, and the background's colours given to the
    foreground.
    """
    yield BASELINE, pair.composite
    for name, transfer in TRANSFERS.items():
        try:
            result = transfer(pair.composite, pair.composite, pair.mask, 1 - pair.mask)
        except Exception as error:
            result = error
        yield name, result


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _score(pair: Pair, results: Iterator[tuple[str, torch.Tensor | Exception]], report: Report) -> None:
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


def _refuse_unused(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """InputError where an option was given that this run has no use for."""
    given = [f"--{name}" for name in names if getattr(args, name)]
    if given:
        raise InputError(f"{' and '.join(given)}: {why}; leave it out")


class _Pictures:
    """Results that another run or method has written: one picture a composite, named after it, in any format."""

    methods = (OUTPUTS,)

    def __init__(self, args: argparse.Namespace, triples: Sequence[Triple]):
        """Takes `FOLDER/<stem>.<any>` or `FOLDER/<subset>/<stem>.<any>`, with or without composite_images between."""
        folder = args.outputs
        _refuse_unused(args, ("methods", "ending", "resolution", "steps", "dtype"), "with --outputs no checkpoint runs")
        if not folder.is_dir():
            raise InputError(f"No folder {folder}; --outputs takes a folder of pictures named as the composites")
        self.about = f"pictures of {folder}"
        self._folder = folder
        self._files: dict[tuple[str, str], list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in images.READABLE and path.is_file():
                inside = [part for part in path.relative_to(folder).parts[:-1] if part != COMPOSITES]
                self._files.setdefault(("/".join(inside), path.stem), []).append(path)
        subsets: dict[str, set[str]] = {}
        for triple in triples:
            subsets.setdefault(triple.composite.stem, set()).add(triple.subset)
        self._in_several = {stem for stem, names in subsets.items() if len(names) > 1}

    def results(self, pair: Pair) -> Iterator[tuple[str, torch.Tensor | Exception]]:
        """(method, picture or what went wrong)."""
        try:
            result = images.read_image(self._find(pair.triple)).pixels
        except Exception as error:
            result = error
        yield OUTPUTS, result

    def _find(self, triple: Triple) -> Path:
        stem = triple.composite.stem
        found = self._files.get((triple.subset, stem), [])
        if not found:
            found = self._files.get(("", stem), [])
            if found and stem in self._in_several:
                raise InputError(
                    f"{found[0]} could belong to several subsets; put it into a folder named {triple.subset}"
                )
        if not found:
            raise InputError(f"no picture {stem}.* in {self._folder} nor in {self._folder / triple.subset}")
        if len(found) > 1:
            raise InputError(f"{len(found)} pictures for {stem}: {', '.join(path.name for path in found)}; keep one")
        return found[0]


class _Engine:
    """Results of a checkpoint, by each method, and of stage 1 by each ending."""

    def __init__(self, args: argparse.Namespace):
        """InputError at once for a checkpoint that cannot harmonize: a part missing, NaN in its weights."""
        from .. import checkpoint, pipeline

        weights = checkpoint.read(args.checkpoint or checkpoint.bundled())
        self._engine = pipeline.DiffHarmony.from_checkpoint(weights, device=find_device("auto"), dtype=args.dtype)
        methods = dict.fromkeys(args.methods or self._possible())
        self.about = f"checkpoint {weights.name}"
        if set(methods) == {"colors"}:
            _refuse_unused(args, ("ending", "resolution", "steps"), "the method colors has no use for it")
        else:
            resolution, steps = args.resolution or weights.resolution, args.steps or weights.steps
            self.about += f", resolution {resolution}, {steps} steps"
        self._endings = self._chosen_endings(args.ending)
        self._rows = {
            method: ["colors"] if method == "colors" else [f"{method}+{ending}" for ending in self._endings]
            for method in methods
        }
        self.methods = [row for rows in self._rows.values() for row in rows]
        self._options = {"resolution": args.resolution, "steps": args.steps}
        for method in methods:  # what one small picture shows need not fail on each of thousands
            trial = torch.full((1, 3, 64, 64), 0.5)
            self._run(method, trial, torch.ones(1, 1, 64, 64), resolution=64, steps=1)

    def results(self, pair: Pair) -> Iterator[tuple[str, torch.Tensor | Exception]]:
        """(row of the tables, picture or what went wrong)."""
        seed = picture_seed(0, pair.triple.composite.stem)
        for method, rows in self._rows.items():
            try:
                results = self._run(method, pair.composite, pair.mask, seeds=[seed], **self._options)
            except Exception as error:
                failure = error
                if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
                    failure = InputError(
                        f"needs more memory than there is ({error}); give a smaller --resolution or --dtype bfloat16"
                    )
                results = dict.fromkeys(rows, failure)
            yield from results.items()

    def _run(self, method: str, composite: torch.Tensor, mask: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        """The results of one method by the rows' names. options: of `DiffHarmony.harmonize_latents`."""
        engine = self._engine
        if method == "colors":
            return {"colors": engine(composite, mask, method="colors").refined}
        if len(self._endings) == 1 or engine.harmony_vae is not None:
            # With a Harmony-VAE the endings decode by different VAEs, and so start from different latents.
            return {
                f"{method}+{ending}": engine(composite, mask, method=method, ending=ending, **options).refined
                for ending in self._endings
            }
        start = composite if method == "diffusion" else engine(composite, mask, method="colors").refined
        decoded = engine.decode(engine.harmonize_latents(start, mask, **options)).to(start.device)
        return {f"{method}+{ending}": engine.finish(decoded, start, mask, ending=ending) for ending in self._endings}

    def _possible(self) -> list[str]:
        """The methods that the checkpoint has parts for; where it has none, one whose parts will be missed."""
        colors, stages = self._engine.color_regressor is not None, self._engine.unet is not None
        return [
            method for method, possible in zip(METHODS, (colors, colors and stages, stages or not colors)) if possible
        ]

    def _chosen_endings(self, wanted: str | None) -> tuple[str, ...]:
        if self._engine.refiner is None and wanted in ("paper", "both"):
            raise InputError(
                f"{self._engine.name} has no refiner, which --ending {wanted} needs; give --ending transfer, or"
                " train one with `train-refiner`"
            )
        if wanted is None:
            return ENDINGS[:1] if self._engine.refiner is None else ENDINGS
        return ENDINGS if wanted == "both" else (wanted,)


def _some(names: Sequence[str], separator: str = "; ") -> str:
    more = len(names) - _NAMED_AT_MOST
    return separator.join([*names[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])])
