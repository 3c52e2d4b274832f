"""The `harmonize` command: one picture, or a folder of them, from files to files."""

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import recolor
from ..devices import find_device
from ..endings import ENDINGS
from ..errors import InputError, disk_full, printable, reason
from ..numbers import real, whole
from ..sampling import SAMPLERS
from ..settings import (
    DECODERS,
    LARGEST_AMOUNT,
    LARGEST_FEATHER,
    LARGEST_RADIUS,
    LARGEST_SEED,
    METHODS,
    SHAPES,
    Settings,
)
from . import arguments
from .arguments import STAGES, file_or_folder, refuse
from .jobs import Job, check_single, pairs
from .picture import harmonize

if TYPE_CHECKING:
    from ..pipeline import DiffHarmony

logger = logging.getLogger(__name__)

EPILOG = """\
folders: COMPOSITE, MASK and OUT may be three folders. A composite goes with the mask of the same name or, as in
iHarmony4, composite <img>_<mask>_<n>.jpg with mask <img>_<mask>.png. Results keep the composite's name (as .png where
its own format cannot be written). A bad pair does not stop the rest: what failed is said at the end.

exit codes: 0 all done (an empty mask gives the composite back, with a note); 1 a fault of the program, with its
traceback; 2 wrong input, or a folder in which any picture failed; 130 interrupted (Ctrl-C); 143 terminated"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options have no default here, so that what was given is known: `Settings` has them."""
    parser.usage = "%(prog)s COMPOSITE MASK OUT [options]"
    parser.epilog = EPILOG
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26)
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument
    add(
        "composite",
        metavar="COMPOSITE",
        type=file_or_folder,
        help="the picture with the pasted foreground, or a folder",
    )
    add("mask", metavar="MASK", type=file_or_folder, help="white (or opaque) = the foreground; or a folder of masks")
    add(
        "out", metavar="OUT", type=file_or_folder, help="the file to write: .png, .webp (both exact), .jpg; or a folder"
    )
    add("--checkpoint", metavar="C", type=file_or_folder, help="weights: a file or folder (default: the bundled ones)")
    add(
        "--method",
        choices=METHODS,
        help="colors: instant; diffusion: the paper's; both (default: colors if C can, else diffusion)",
    )
    amount = real(0, LARGEST_AMOUNT)
    add("--strength", metavar="X", type=amount, help="how much of the change is made, 0 to 1.5 (default: 1, all)")
    add("--light", metavar="X", type=amount, help="how much of its light, apart from its colour (default: 1)")
    add("--color", metavar="X", type=amount, help="how much of its colour, apart from its light (default: 1)")
    add("--local", metavar="X", type=amount, help="how much of what varies over the foreground, in colors (default: 1)")
    add(
        "--feather",
        metavar="F",
        type=whole(0, LARGEST_FEATHER),
        help="pixels over which the foreground's edge fades in, inwards (default: 0)",
    )
    add(
        "--crop",
        metavar="C",
        type=arguments.crop,
        help="harmonize in a window of C times the foreground's side; auto: under 2 %% of the picture (default: off)",
    )
    add(
        "--output-size",
        metavar="S",
        type=arguments.output_size,
        help="of the result: the longer side in pixels, or WIDTHxHEIGHT (default: the composite's)",
    )
    add(
        "--compare",
        metavar="SHEET",
        type=file_or_folder,
        help="also write a sheet of all stages; or a folder of sheets",
    )
    add("--lut", metavar="FILE.cube", type=file_or_folder, help="also write one picture's change as a look-up table")
    add("--overwrite", action="store_true", help="of a folder, make again what is there already")
    add("--device", metavar="D", help=arguments.DEVICE)

    stages = parser.add_argument_group("with the methods diffusion and both", argument_default=argparse.SUPPRESS)
    add = stages.add_argument
    add(
        "--ending",
        choices=tuple(ENDINGS),
        help="carry the colours to the original (default); the paper's, refined; or as decoded",
    )
    add(
        "--resolution",
        metavar="R",
        type=arguments.resolution,
        help="side of a square of the area worked at (default: C's)",
    )
    add("--shape", choices=SHAPES, help="keep the proportions (default), or squash to a square as the paper does")
    add("--steps", metavar="N", type=arguments.steps, help="sampling steps (default: C's)")
    add("--sampler", choices=SAMPLERS, help="euler_ancestral, as published (default), or without noise on the way")
    add(
        "--seed",
        metavar="N",
        type=whole(0, LARGEST_SEED),
        help="of the noise; in a folder, each picture has one of its own made of it (default: 0)",
    )
    add("--decoder", choices=DECODERS, help="what encodes and decodes (default: vae)")
    add("--radius", metavar="R", type=whole(1, LARGEST_RADIUS), help="of transfer: smaller is more local (default: 12)")
    add(
        "--detail",
        metavar="X",
        type=real(0, 1),
        help="of transfer: 1 keeps the original's texture (default), 0 the decoded",
    )
    add(
        "--keep-background",
        action=argparse.BooleanOptionalAction,
        help="of the other endings: the background stays to the bit (default)",
    )
    add(
        "--dtype",
        metavar="T",
        type=arguments.dtype,
        help="float32, bfloat16 or float16 (default: what suits the device)",
    )


def run(args: argparse.Namespace) -> int:
    """Returns the exit code. InputError, or OSError that names its file, for what stops the whole run."""
    options = vars(args)
    work = Work(options)
    for path in (args.composite, args.mask):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; check the name")
    job = Job(args.composite, args.mask, args.out, options.get("compare"), options.get("lut"))
    if job.composite.is_dir():
        refuse(options, ("lut",), "a table is of one picture; leave it out")
        return _run_folder(job, work, "overwrite" in options)
    refuse(options, ("overwrite",), "one picture is made again in any case; leave it out")
    check_single(job)
    started = time.monotonic()
    harmonize(job, work.load, work.settings, work.output_size)
    logger.info("%s written, %.1f s", job.out, time.monotonic() - started)
    return 0


class Work:
    """What is the same for every picture: the settings, and the engine, which is loaded when it is first used."""

    def __init__(self, options: dict[str, Any]):
        """options: those that were given. InputError for those that there is no use for."""
        self.options = options
        amounts = {field.name for field in fields(recolor.Amounts)} & options.keys()
        own = {field.name for field in fields(Settings)} & options.keys()
        self.settings = Settings(
            amounts=recolor.Amounts(**{name: options[name] for name in amounts}),
            **{name: options[name] for name in own},
        )
        self.output_size: Callable[[int, int], tuple[int, int]] | None = options.get("output_size")
        self._engine: DiffHarmony | None = None
        self._device = find_device(options.get("device", "auto"))
        if self.settings.method is not None:
            self._refuse_unused(self.settings.method)

    def load(self) -> "DiffHarmony":
        """The engine; InputError for weights that cannot be read, and for options that their method leaves unused."""
        if self._engine is None:
            self._engine = self._loaded()
        return self._engine

    def _loaded(self) -> "DiffHarmony":
        from .. import checkpoint, pipeline

        path = self.options.get("checkpoint") or checkpoint.bundled()
        if self.settings.method in (None, "colors"):  # the rest of the checkpoint need not be read for that
            weights = checkpoint.read(path, parts=("color_regressor",))
            if weights.color_regressor is not None:
                self._refuse_unused("colors")
                return pipeline.DiffHarmony.from_checkpoint(weights, device=self._device)
        weights = checkpoint.read(path)
        engine = pipeline.DiffHarmony.from_checkpoint(weights, self._device, self.options.get("dtype"))
        self._refuse_unused(self.settings.method or engine.default_method)
        return engine

    def _refuse_unused(self, method: str) -> None:
        if method == "colors":
            why = "the method colors has no use for it; leave it out, or give another --method"
            refuse(self.options, (*STAGES, "dtype"), why)
            return
        if method == "diffusion":
            refuse(self.options, ("local",), "the method diffusion has no use for it; leave it out")
        chosen = self.settings.ending
        others = {option for ending in ENDINGS.values() for option in ending.options} - {*ENDINGS[chosen].options}
        refuse(self.options, sorted(others), f"the ending {chosen} has no use for it; leave it out")
        if not self.settings.keep_background:
            refuse(self.options, ("feather",), "without the background there is no edge to soften; leave it out")


def _run_folder(folders: Job, work: Work, overwrite: bool) -> int:
    jobs, failures = pairs(folders)
    total = len(jobs) + len(failures)
    waiting = [job for job in jobs if overwrite or not job.done]
    if waiting:
        work.load()  # weights that cannot be read are no picture's fault
        with tqdm(waiting, unit="picture", dynamic_ncols=True) as bar:
            for job in bar:
                try:
                    harmonize(job, work.load, work.settings.for_picture(job.composite.stem), work.output_size)
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
