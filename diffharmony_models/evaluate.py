"""Scores harmonized pictures against the real ones, as the paper does on iHarmony4.

Everything is scored at 256×256 (bilinear, antialiased), rounded to 8 bits, and with the result's foreground put on the real background
first. The untouched composite and Reinhard's colour transfer are scored beside the results in every run.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from . import color, geometry, images, metrics
from .errors import InputError, printable, reason
from .harmonize import dtype, file_or_folder, find_device, picture_seed, resolution, seed, steps
from .iharmony import COMPOSITES, Triple, pairs
from .numbers import whole
from .report import Missing, Report, Score

logger = logging.getLogger(__name__)

SIZE = (256, 256)
BASELINES = ("composite", "reinhard")
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
        "--own-background",
        action="store_true",
        help="score the result with its own background, not with its foreground on the real one",
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
        "--ending", choices=[*ENDINGS, "both"], default="both", help="which ending is scored (%(default)s)"
    )
    run.add_argument("--no-refine", action="store_true", help="score the paper's ending without its refinement")
    run.add_argument(
        "--resolution", metavar="R", type=resolution, default=0, help="stage 1's resolution (0: the checkpoint's own)"
    )
    run.add_argument(
        "--native-size", action="store_true", help="harmonize at the picture's own size, scale the result down"
    )
    run.add_argument("--steps", metavar="N", type=steps, default=0, help="sampling steps (the checkpoint's own)")
    run.add_argument("--sampler", choices=["euler_ancestral", "euler"], default="euler_ancestral", help="(%(default)s)")
    run.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="with the picture's name, decides its noise (%(default)s)"
    )
    run.add_argument(
        "--batch-size",
        metavar="N",
        type=whole(1, 1024),
        default=1,
        help="pictures harmonized at once (%(default)s)",
    )
    run.add_argument("--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (the best there is)")
    run.add_argument("--dtype", metavar="T", type=dtype, help="float32, bfloat16 or float16 (what suits the device)")


def run(args: argparse.Namespace) -> int:
    """Evaluates and writes the tables, the lists and the sheet into `args.results`.

    Returns:
        The exit code: 0, or 2 where pairs could not be scored. They are named in the log and in `missing.csv`, and the tables count them.

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
    args.results.mkdir(parents=True, exist_ok=True)

    source = _Pictures(args.outputs, triples) if args.outputs else _Engine(args)
    report = Report([*BASELINES, *source.methods], ranked_by=source.methods[0])
    listed = list(zip(entries, triples))
    with tqdm(total=len(listed), desc="evaluate", unit="pair") as progress:
        for start in range(0, len(listed), source.batch_size):
            batch = list(_load(listed[start : start + source.batch_size], report))
            for pair, results in zip(batch, source.results(batch)):
                _score(pair, {**_baselines(pair), **results}, report, args.own_background)
            progress.update(min(source.batch_size, len(listed) - start))
    place = "its own background" if args.own_background else "the real background"
    report.write(
        args.results,
        f"{printable(str(args.list))}, {len(triples)} pairs; {printable(source.about)}. At 256×256, 8 bits; the"
        f" foreground on {place}. Averages over pictures; `missing` ones could not be scored and are in no average.",
    )
    logger.info("%s\nTables and worst cases: %s", report.summary(), args.results)
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
    """One pair as it is scored. Images B3HW in [0, 1] in steps of 1/255, masks B1HW in {0, 1}."""

    entry: str
    triple: Triple
    composite: torch.Tensor
    mask: torch.Tensor
    real: torch.Tensor

    @property
    def share(self) -> float:
        return self.mask.mean().item()


def quantized(image: torch.Tensor) -> torch.Tensor:
    """An image in [0, 1] as if it had been saved with 8 bits and read again. ValueError for NaN and infinite values."""
    if not torch.isfinite(image).all():
        raise InputError("the result holds NaN or infinite values; try --dtype float32, or another checkpoint")
    return image.detach().float().cpu().mul(255).round().clamp(0, 255) / 255


def prepared(image: torch.Tensor) -> torch.Tensor:
    """B3HW in [0, 1] of any size to 256×256 in steps of 1/255."""
    return quantized(geometry.resize(image.float(), SIZE))


def score(pair: Pair, result: torch.Tensor, method: str, own_background: bool = False) -> tuple[Score, torch.Tensor]:
    """Measures one result against the real picture.

    Args:
        result: 1 3 H W in [0, 1], of any size.
        own_background: leave the result's background as it is. Otherwise, as in the published evaluation, what stands outside
            the mask is replaced by the real picture first: JPEG traces in the composite's background are not the method's.

    Returns:
        The score, and the picture it was measured on (1 3 256 256, in [0, 1]).
    """
    picture = prepared(quantized(result))
    if not own_background:
        picture = geometry.paste(picture, pair.real, pair.mask)
    image, real = (picture * 255).round(), (pair.real * 255).round()
    similarity = metrics.ssim_map(image, real)
    values = (
        metrics.psnr(image, real),
        metrics.mse(image, real),
        metrics.fmse(image, real, pair.mask),
        metrics.mean_ssim(similarity),
        metrics.foreground_ssim(similarity, pair.mask),
    )
    return Score(pair.entry, pair.triple.subset, pair.share, method, *(value.item() for value in values)), picture


def _load(batch: Sequence[tuple[str, Triple]], report: Report) -> Iterator[Pair]:
    """The pairs that can be read; the others go into the report as missing for all methods."""
    for entry, triple in batch:
        try:
            composite, real = (images.read_image(path).pixels for path in (triple.composite, triple.real))
            mask = images.read_mask(triple.mask)
            for path, picture in ((triple.mask, mask), (triple.real, real)):
                if picture.shape[-2:] != composite.shape[-2:]:
                    raise InputError(
                        f"{path} is {_size(picture)} but {triple.composite} is {_size(composite)}; composite, mask and"
                        " real picture must be of one size"
                    )
            mask = geometry.binarize(geometry.resize(mask, SIZE))
            if geometry.is_empty(mask).any():
                raise InputError(f"{triple.mask} has no foreground at {SIZE[1]}x{SIZE[0]}")
            yield Pair(entry, triple, prepared(composite), mask, prepared(real))
        except Exception as error:  # one picture's fault, of whatever kind, is that picture's
            why = reason(error, logger)
            for method in report.methods:
                report.missing.append(Missing(entry, triple.subset, None, method, why))


def _baselines(pair: Pair) -> dict[str, torch.Tensor | Exception]:
    try:
        reinhard = color.reinhard(pair.composite, pair.composite, pair.mask, 1 - pair.mask)
    except Exception as error:
        reinhard = error
    return {"composite": pair.composite, "reinhard": reinhard}


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _score(pair: Pair, results: dict[str, torch.Tensor | Exception], report: Report, own_background: bool) -> None:
    row, worst = [], None
    for method, result in results.items():
        try:
            if isinstance(result, Exception):
                raise result
            value, picture = score(pair, result, method, own_background)
        except Exception as error:
            why = reason(error, logger)
            report.missing.append(Missing(pair.entry, pair.triple.subset, pair.share, method, why))
            continue
        report.scores.append(value)
        worst = value.fmse if method == report.ranked_by else worst
        if method != "reinhard":
            row.append((f"{method} {value.psnr:.1f} dB, fMSE {value.fmse:.0f}", picture))
    if worst is not None:
        mask = (f"mask {pair.share:.1%}", pair.mask)
        real = (f"real {Path(pair.entry).stem}", pair.real)
        report.offer_sheet_row(worst, lambda: [row[0], mask, *row[1:], real])


class _Pictures:
    """Results that another run or another method has written: one picture a composite, named after it, in any format."""

    methods = (OUTPUTS,)
    batch_size = 1

    def __init__(self, folder: Path, triples: Sequence[Triple]):
        """Takes `folder/<stem>.<any>` or `folder/<subset>/<stem>.<any>` (with or without composite_images in between)."""
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

    def results(self, batch: Sequence[Pair]) -> Iterator[dict[str, torch.Tensor | Exception]]:
        for pair in batch:
            try:
                result = images.read_image(self._find(pair.triple)).pixels
            except Exception as error:
                result = error
            yield {OUTPUTS: result}

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
    """Results of a checkpoint, by one or both endings."""

    def __init__(self, args: argparse.Namespace):
        """ValueError at once for a checkpoint that cannot harmonize: a part missing, NaN in its weights."""
        device = find_device(args.device)
        from . import checkpoint, pipeline  # diffusers comes with it, and takes seconds

        weights = checkpoint.read(args.checkpoint or checkpoint.bundled())
        self._engine = pipeline.DiffHarmony.from_checkpoint(weights, device=device, dtype=args.dtype)
        self._args = args
        self.methods = ENDINGS if args.ending == "both" else (args.ending,)
        self.batch_size = 1 if args.native_size else args.batch_size  # pictures of different sizes make no batch
        for ending in self.methods:  # what one small picture shows need not fail on each of thousands
            trial = torch.full((1, 3, 64, 64), 0.5)
            self._engine(
                trial, torch.ones(1, 1, 64, 64), resolution=64, steps=1, ending=ending, refine=not args.no_refine
            )
        self.about = (
            f"checkpoint {weights.name}, resolution {args.resolution or weights.resolution}, "
            f"{args.steps or weights.steps} steps of {args.sampler}, "
            f"seed {args.seed}{', not refined' if args.no_refine else ''}{', harmonized at native size' if args.native_size else ''}"
        )

    def results(self, batch: Sequence[Pair]) -> list[dict[str, torch.Tensor | Exception]]:
        """One dictionary a pair. Where a batch fails, its pictures are tried one by one."""
        try:
            return self._run(batch) if batch else []
        except Exception as error:
            failure = error
            if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
                failure = InputError(
                    f"needs more memory than there is ({error}); give a smaller --resolution or --dtype bfloat16"
                )
        if len(batch) == 1:
            return [dict.fromkeys(self.methods, failure)]
        return [result for pair in batch for result in self.results([pair])]

    def _run(self, batch: Sequence[Pair]) -> list[dict[str, torch.Tensor]]:
        composite, mask = self._inputs(batch)
        refine = not self._args.no_refine
        options = {
            "resolution": self._args.resolution,
            "steps": self._args.steps,
            "sampler": self._args.sampler,
            "seeds": [picture_seed(self._args.seed, pair.triple.composite.stem) for pair in batch],
        }
        if (
            len(self.methods) == 1 or self._engine.harmony_vae is not None
        ):  # with a Harmony-VAE the endings decode by different VAEs
            finished = {
                ending: self._engine(composite, mask, ending=ending, refine=refine, **options).refined
                for ending in self.methods
            }
        else:
            decoded = self._engine.decode(self._engine.harmonize_latents(composite, mask, **options)).to(
                composite.device
            )
            finished = {
                ending: self._engine.finish(decoded, composite, mask, ending=ending, refine=refine)
                for ending in self.methods
            }
        return [
            {ending: result[index : index + 1] for ending, result in finished.items()} for index in range(len(batch))
        ]

    def _inputs(self, batch: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Composites and masks as the engine gets them: at 256×256 as they are scored, or as they are in the files."""
        if not self._args.native_size:
            return torch.cat([pair.composite for pair in batch]), torch.cat([pair.mask for pair in batch])
        triple = batch[0].triple
        return images.read_image(triple.composite).pixels, images.read_mask(triple.mask)


def _some(names: Sequence[str], separator: str = "; ") -> str:
    more = len(names) - _NAMED_AT_MOST
    return separator.join([*names[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])])
