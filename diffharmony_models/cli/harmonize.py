"""The `harmonize` command: one picture, or a folder of them, from files to files."""

import argparse
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from .. import geometry, recolor
from ..errors import InputError, disk_full, printable, reason
from ..files import images, sheets
from ..numbers import real, whole

if TYPE_CHECKING:
    from ..pipeline import DiffHarmony, Result

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "half": torch.float16,
}  # fmt: skip
LARGEST_RESOLUTION = 4096
SHEET_SIDE = 512

EPILOG = """\
folders: COMPOSITE, MASK and OUT may be three folders. A composite goes with the
mask of the same name, whatever the extension, or, as in iHarmony4, composite
<img>_<mask>_<n>.jpg with mask <img>_<mask>.png. Results keep the composite's
name (as .png where its own format cannot be written). What is there already is
skipped unless --overwrite is given. A bad pair does not stop the rest: what
failed is said at the end.

exit codes: 0 all done (an empty mask gives the composite back, with a note);
1 a fault of the program, with its traceback; 2 wrong input, or a folder in
which any picture failed; 130 interrupted (Ctrl-C); 143 terminated"""


@dataclass(frozen=True)
class Job:
    """The files of one picture; sheet: where its comparison sheet goes, or None."""

    composite: Path
    mask: Path
    out: Path
    sheet: Path | None = None

    @property
    def done(self) -> bool:
        return all(
            os.path.isfile(path) and os.path.getsize(path) for path in (self.out, self.sheet) if path is not None
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "composite",
        metavar="COMPOSITE",
        type=file_or_folder,
        help="the picture with the pasted foreground, or a folder of them",
    )
    parser.add_argument(
        "mask",
        metavar="MASK",
        type=file_or_folder,
        help="white (or opaque) = the foreground, of the composite's size; or a folder of masks",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=file_or_folder,
        help="the file to write: .png or .webp (without loss), .jpg (quality 95); or a folder",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="C",
        type=file_or_folder,
        help="weights: one file or a folder (default: the bundled ones)",
    )
    parser.add_argument(
        "--method",
        choices=("colors", "diffusion", "both"),
        help="colors: the colour regressor, instant; diffusion: the paper's stages; both: one after the other "
        "(default: colors where the checkpoint has a regressor, else diffusion)",
    )
    for name, what in (
        ("strength", "how much of the change is made: 0 none, 1 all, above 1 more"),
        ("light", "how much of its light, apart from its colour"),
        ("color", "how much of its colour, apart from its light"),
    ):
        parser.add_argument(
            f"--{name}", metavar="X", type=real(0, 1.5), default=1.0, help=f"{what}, 0 to 1.5 (default: 1)"
        )
    parser.add_argument(
        "--resolution",
        metavar="R",
        type=resolution,
        default=0,
        help="side of the square whose area stage 1 works at (0: the checkpoint's own)",
    )
    parser.add_argument(
        "--shape",
        choices=("keep", "square"),
        default="keep",
        help="keep the proportions, or squash to a square as the paper does (default: keep)",
    )
    parser.add_argument(
        "--output-size",
        metavar="S",
        type=output_size,
        help="size of the result: its longer side in pixels, proportions kept, or WIDTHxHEIGHT "
        "(default: the composite's)",
    )
    parser.add_argument(
        "--steps", metavar="N", type=steps, default=0, help="sampling steps (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=seed,
        default=0,
        help="with the picture's file name, decides its noise; same seed, same result (default: 0)",
    )
    parser.add_argument(
        "--sampler",
        choices=("euler_ancestral", "euler"),
        default="euler_ancestral",
        help="(default: euler_ancestral, as published)",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="end as the paper does: the decoded image, scaled down and refined. "
        "Default: the original's pixels with the new colours",
    )
    parser.add_argument("--no-refine", action="store_true", help="with --paper: leave the refiner out")
    parser.add_argument(
        "--feather",
        metavar="F",
        type=feather,
        default=0,
        help="pixels over which the foreground's edge fades in, inwards (default: 0)",
    )
    parser.add_argument(
        "--compare",
        metavar="SHEET",
        type=file_or_folder,
        help="also write a sheet of composite, mask, harmonized, refined; for folders, a folder of sheets",
    )
    parser.add_argument("--overwrite", action="store_true", help="of a folder, make again what is there already")
    parser.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)"
    )
    parser.add_argument(
        "--dtype", metavar="T", type=dtype, help="float32, bfloat16 or float16 (default: what suits the device)"
    )


def run(args: argparse.Namespace) -> int:
    """Returns the exit code. InputError, or OSError that names its file, for what stops the whole run."""
    device = find_device(args.device)
    for path in (args.composite, args.mask):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; check the name")
    if args.composite.is_dir():
        return _run_folder(args, device)
    job = single(args)
    started = time.monotonic()
    _harmonize(job, args, lambda: _load(args, device))
    logger.info("%s written, %.1f s", job.out, time.monotonic() - started)
    return 0


def _run_folder(args: argparse.Namespace, device: torch.device) -> int:
    jobs, failures = pairs(args)
    total = len(jobs) + len(failures)
    waiting = [job for job in jobs if args.overwrite or not job.done]
    if waiting:
        engine = _load(args, device)
        with tqdm(waiting, unit="picture", dynamic_ncols=True) as bar:
            for job in bar:
                try:
                    _harmonize(job, args, lambda: engine)
                except Exception as error:  # one picture's fault, of whatever kind, is that picture's
                    if disk_full(error):
                        raise  # every further picture would fail too, after as much work
                    failures.append((job.composite.name, reason(error, logger)))
                    bar.set_postfix(failed=len(failures))
    skipped = len(jobs) - len(waiting)
    logger.info(
        "%d harmonized, %d were there already, %d failed", total - skipped - len(failures), skipped, len(failures)
    )
    if failures:
        logger.error(
            "%d of %d failed:\n%s",
            len(failures),
            total,
            "\n".join(f"  {printable(name)}: {why}" for name, why in failures),
        )
    return 2 if failures else 0


def single(args: argparse.Namespace) -> Job:
    """The job of one picture. ValueError where an output cannot be written or would replace an input."""
    if args.mask.is_dir():
        raise InputError(
            f"{args.composite} is one picture but {args.mask} is a folder; give one mask, or folders for all three"
        )
    for path in (args.out, args.compare):
        if path is None:
            continue
        images.check_output(path)
        if any(_same(path, source) for source in (args.composite, args.mask)):
            raise InputError(f"{path} would be written over an input; give the result another name")
    if args.compare is not None and _same(args.compare, args.out):
        raise InputError(f"{args.compare} cannot be both the result and the sheet; give them different names")
    return Job(args.composite, args.mask, args.out, args.compare)


def pairs(args: argparse.Namespace) -> tuple[list[Job], list[tuple[str, str]]]:
    """The jobs of a folder, sorted by name, and (name, reason) of the composites that cannot be one.

    ValueError for unusable folders.
    """
    if not args.mask.is_dir():
        raise InputError(f"{args.composite} is a folder but {args.mask} is none; give a folder of masks")
    outputs = [args.out] if args.compare is None else [args.out, args.compare]
    for path in outputs:
        if (os.path.lexists(path) and not path.is_dir()) or path.suffix.lower() in images.WRITABLE:
            raise InputError(f"{args.composite} is a folder, so {path} must be a folder too; give the name of a folder")
    folders = [args.composite, args.mask, *outputs]
    if len({os.path.realpath(path) for path in folders}) < len(folders):
        raise InputError(f"the folders must differ: {', '.join(map(str, folders))}; give each a folder of its own")
    masks: dict[str, list[Path]] = {}
    for path in _pictures(args.mask):
        masks.setdefault(path.stem, []).append(path)
    composites = list(_pictures(args.composite))
    if not composites:
        raise InputError(f"{args.composite} holds no picture; expected {', '.join(images.READABLE)} directly in it")
    jobs: list[Job] = []
    failures: list[tuple[str, str]] = []
    taken: dict[Path, str] = {}
    for composite in composites:
        stem = composite.stem
        found = masks.get(stem) or masks.get(stem.rpartition("_")[0], [])
        out = args.out / (composite.name if composite.suffix.lower() in images.WRITABLE else f"{stem}.png")
        sheet = None if args.compare is None else args.compare / f"{stem}.png"
        other = taken.get(out) or (taken.get(sheet) if sheet else None)
        if len(found) != 1:
            names = ", ".join(path.name for path in found)
            what = (
                f"several masks: {names}; keep one"
                if found
                else f"no mask in {args.mask}; expected {stem}.png or, as in iHarmony4, that of <img>_<mask>"
            )
            failures.append((composite.name, what))
        elif other:
            failures.append((composite.name, f"its result would have the name of that of {other}; rename one of them"))
        else:
            taken.update({out: composite.name} if sheet is None else {out: composite.name, sheet: composite.name})
            jobs.append(Job(composite, found[0], out, sheet))
    return jobs, failures


def picture_seed(number: int, name: str) -> int:
    """The seed of one picture's noise: a hash of `--seed` and the picture's file name without its extension.

    So every picture of a folder has noise of its own, and the same noise alone, in any folder and in any order.
    """
    text = f"{number}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def _harmonize(job: Job, args: argparse.Namespace, engine: Callable[[], "DiffHarmony"]) -> None:
    """Reads, harmonizes and writes one picture.

    engine: returns the DiffHarmony; called only once the input has proven good.
    """
    picture, mask = read_pair(job)
    size = picture.size if args.output_size is None else args.output_size(*picture.size)
    for path in (job.out, job.sheet):
        if path is not None:
            images.check_output(path, size if path == job.out else None)
    alpha = picture.alpha
    if alpha is not None and images.check_output(job.out) not in images.ALPHA_FORMATS:
        logger.warning(
            "%s has transparency, which a %s cannot hold; write a .png to keep it", job.composite, job.out.suffix
        )
        alpha = None
    if geometry.is_empty(mask).all():
        highest = round(mask.max().item() * 255)
        logger.warning(
            "%s is empty (its brightest value is %d of 255, 128 is needed); %s is given back as it was",
            job.mask,
            highest,
            job.composite,
        )
        harmonized, refined = picture.pixels, geometry.resize(picture.pixels, size)
    else:
        result = _run_engine(engine(), picture, mask, size, job, args)
        harmonized, refined = result.harmonized, result.refined
    if job.sheet is not None:
        images.write_image(job.sheet, sheet(picture.pixels, mask, harmonized, refined, args, job.composite.name))
    images.write_image(job.out, refined, picture.icc_profile, None if alpha is None else geometry.resize(alpha, size))


def read_pair(job: Job) -> tuple[images.Picture, torch.Tensor]:
    """Composite and mask of one picture.

    ValueError where their sizes differ or the composite is too long for its height.
    """
    picture, mask = images.read_image(job.composite), images.read_mask(job.mask)
    height, width = picture.size
    if mask.shape[-2:] != picture.pixels.shape[-2:]:
        turned = f" ({job.composite.name} is turned by its EXIF orientation)" if picture.turned else ""
        raise InputError(
            f"{job.composite} is {width}x{height} but its mask {job.mask} is {mask.shape[-1]}x{mask.shape[-2]}{turned};"
            " give a mask of the composite's size"
        )
    return picture, mask


def sheet(
    composite: torch.Tensor,
    mask: torch.Tensor,
    harmonized: torch.Tensor,
    refined: torch.Tensor,
    args: argparse.Namespace,
    title: str,
) -> torch.Tensor:
    """The comparison sheet: four pictures in a row where they are upright, two by two otherwise. The harmonized one,
    whose size is that of stage 1, is shown in the composite's proportions."""
    height, width = composite.shape[-2:]
    panels = [("composite", composite), ("mask", mask)]
    if harmonized is refined:  # by colours alone: there is nothing between the composite and the result
        panels.insert(1, ("harmonized", refined))
    else:
        scale = min(1, SHEET_SIDE / max(height, width))
        small = geometry.resize(harmonized, (max(1, round(height * scale)), max(1, round(width * scale))))
        ending = "not refined" if args.no_refine else "refined"
        panels += [
            ("harmonized", small),
            (ending if args.paper else "colours carried to the original", refined),
        ]
    return sheets.comparison_sheet([panels] if height > width else [panels[:2], panels[2:]], SHEET_SIDE, title)


def _run_engine(
    engine: "DiffHarmony",
    picture: images.Picture,
    mask: torch.Tensor,
    size: tuple[int, int],
    job: Job,
    args: argparse.Namespace,
) -> "Result":
    height, width = picture.size
    wanted = args.resolution or engine.resolution
    inference = geometry.inference_size(height, width, wanted, args.shape)
    method = args.method or engine.default_method
    if method != "colors" and inference[0] * inference[1] > 4 * wanted**2:
        raise InputError(
            f"{job.composite} is {width}x{height}, too long and thin; "
            "crop it around the foreground, or use --shape square"
        )
    name = printable(job.composite.name)
    try:
        with tqdm(unit="stage", desc=name, leave=False, delay=1, disable=None, dynamic_ncols=True) as bar:
            return engine(
                picture.pixels,
                mask,
                method=args.method,
                amounts=recolor.Amounts(args.strength, args.light, args.color),
                resolution=args.resolution,
                shape=args.shape,
                steps=args.steps,
                sampler=args.sampler,
                seeds=[picture_seed(args.seed, job.composite.stem)],
                output_size=size,
                ending="paper" if args.paper else "transfer",
                refine=not args.no_refine,
                feather=args.feather,
                progress=lambda done, total: _show(bar, done, total),
            )
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise InputError(
            f"{job.composite} needs more memory than there is at {inference[1]}x{inference[0]}; "
            "give a smaller --resolution or --dtype bfloat16"
        ) from error


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _load(args: argparse.Namespace, device: torch.device) -> "DiffHarmony":
    from .. import checkpoint, pipeline

    path = args.checkpoint or checkpoint.bundled()
    if args.method in (None, "colors"):  # the rest of the checkpoint need not be read for that
        weights = checkpoint.read(path, parts=("color_regressor",))
        if weights.color_regressor is not None:
            return pipeline.DiffHarmony.from_checkpoint(weights, device=device)
    weights = checkpoint.read(path)
    return pipeline.DiffHarmony.from_checkpoint(weights, device=device, dtype=args.dtype)


def find_device(name: str) -> torch.device:
    """A device that is there; "auto" takes the best. ValueError for unknown and absent ones."""
    there = ["cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cpu" if len(there) == 1 else there[1])
    if (f"{name}:0" if name == "cuda" else name) not in there:
        raise InputError(f"no device {name!r} here; there is {', '.join(there)}")
    return torch.device(name)


def file_or_folder(text: str) -> Path:
    """A type for argparse. An empty text, such as an unset variable gives, is not taken for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file or a folder is empty")
    return Path(text)


def dtype(text: str) -> torch.dtype:
    if text.lower() not in DTYPES:
        raise argparse.ArgumentTypeError(f"unknown dtype {text!r}; use float32, bfloat16 or float16")
    return DTYPES[text.lower()]


def output_size(text: str) -> Callable[[int, int], tuple[int, int]]:
    """What `--output-size` says, as a function of the composite's height and width that gives those of the result."""
    found = re.fullmatch(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text)
    if not found or not all(0 < int(side) <= 65500 for side in found.groups() if side is not None):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no size; give the longer side in pixels (1024) or WIDTHxHEIGHT (1024x768)"
        )
    first, second = found.groups()
    if second is not None:
        return lambda height, width: (int(second), int(first))

    def proportional(height: int, width: int) -> tuple[int, int]:
        longer = max(height, width)
        return max(1, round(height * int(first) / longer)), max(1, round(width * int(first) / longer))

    return proportional


steps = whole(1, 1000)
seed = whole(-(2**63), 2**64 - 1)
feather = whole(0, 1000)


def resolution(text: str) -> int:
    number = whole(0, LARGEST_RESOLUTION)(text)
    if 0 < number < geometry.SIDE:
        raise argparse.ArgumentTypeError(f"must be at least {geometry.SIDE} (or 0, the checkpoint's own), not {number}")
    return number


def _pictures(folder: Path) -> Iterable[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in images.READABLE and not path.name.startswith(".")
    )


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
