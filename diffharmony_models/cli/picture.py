"""One picture, from file to file."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from .. import crop, geometry, lut
from ..endings import ENDINGS
from ..errors import InputError, printable
from ..files import images, sheets
from ..settings import Settings
from .jobs import Job

if TYPE_CHECKING:
    from ..pipeline import DiffHarmony, Result

logger = logging.getLogger(__name__)

SHEET_SIDE = 512


def harmonize(
    job: Job,
    load: Callable[[], "DiffHarmony"],
    settings: Settings,
    output_size: Callable[[int, int], tuple[int, int]] | None,
) -> None:
    """Reads, harmonizes and writes one picture.

    load: gives the engine; called only once the input has proven good. output_size: from the composite's height and
    width those of the result; None: the same.
    """
    picture, mask = read_pair(job)
    size = picture.size if output_size is None else output_size(*picture.size)
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
            "%s is empty (its brightest value is %d of 255, 128 is needed); %s is returned unchanged",
            job.mask,
            highest,
            job.composite,
        )
        harmonized, refined = picture.pixels, geometry.resize(picture.pixels, size)
    else:
        result = _run_engine(load(), picture, mask, size, job, settings)
        harmonized, refined = result.harmonized, result.refined
    if job.lut is not None:
        _write_lut(job.lut, geometry.resize(picture.pixels, size), geometry.resize(mask, size), refined)
    if job.sheet is not None:
        title = ENDINGS[settings.ending].title
        images.write_image(job.sheet, sheet(picture.pixels, mask, harmonized, refined, title, job.composite.name))
    images.write_image(job.out, refined, picture.icc_profile, None if alpha is None else geometry.resize(alpha, size))


def _write_lut(path: Path, composite: torch.Tensor, mask: torch.Tensor, refined: torch.Tensor) -> None:
    if geometry.is_empty(mask).all():
        logger.warning("%s is not written: without a foreground there is no change of colour", path)
        return
    table = lut.table(lut.curve_between(composite, refined, mask))
    lut.write(path, table, path.stem)
    logger.info("%s written: %s", path, lut.left_out(table, composite, refined, mask))


def read_pair(job: Job) -> tuple[images.Picture, torch.Tensor]:
    """Composite and mask of one picture; a mask of its proportions is scaled to it. InputError for any other size."""
    picture, mask = images.read_image(job.composite), images.read_mask(job.mask)
    height, width = picture.size
    if not geometry.proportional(mask.shape[-2:], picture.size):
        turned = f" ({job.composite.name} is turned by its EXIF orientation)" if picture.turned else ""
        raise InputError(
            f"{job.composite} is {width}x{height} but its mask {job.mask} is {mask.shape[-1]}x{mask.shape[-2]}{turned};"
            " give a mask of the composite's proportions"
        )
    return picture, geometry.resize(mask, picture.size)


def sheet(
    composite: torch.Tensor,
    mask: torch.Tensor,
    harmonized: torch.Tensor,
    refined: torch.Tensor,
    ending: str,
    title: str,
) -> torch.Tensor:
    """The comparison sheet: four pictures in a row where they are upright, two by two otherwise. The harmonized one,
    whose size is that of stage 1, is shown in the composite's proportions. ending: the last one's name."""
    height, width = composite.shape[-2:]
    panels = [("composite", composite), ("mask", mask)]
    if harmonized is refined:  # by colours alone: there is nothing between the composite and the result
        panels.insert(1, ("harmonized", refined))
    else:
        scale = min(1, SHEET_SIDE / max(height, width))
        small = geometry.resize(harmonized, (max(1, round(height * scale)), max(1, round(width * scale))))
        panels += [("harmonized", small), (ending, refined)]
    return sheets.comparison_sheet([panels] if height > width else [panels[:2], panels[2:]], SHEET_SIDE, title)


def _run_engine(
    engine: "DiffHarmony",
    picture: images.Picture,
    mask: torch.Tensor,
    size: tuple[int, int],
    job: Job,
    settings: Settings,
) -> "Result":
    mask = geometry.without_faint(mask)
    context = crop.context_for(mask, settings.crop)
    height, width = picture.size
    wanted = settings.resolution or engine.resolution
    inference = geometry.inference_size(height, width, wanted, settings.shape)
    method = settings.method or engine.default_method
    if method != "colors" and context is None and inference[0] * inference[1] > 4 * wanted**2:
        raise InputError(f"{job.composite} is {width}x{height}, too long and thin; use --crop 2, or --shape square")
    name = printable(job.composite.name)
    try:
        with tqdm(unit="stage", desc=name, leave=False, delay=1, disable=None, dynamic_ncols=True) as bar:

            def run(part: torch.Tensor, inside: torch.Tensor, output_size: tuple[int, int] | None = None) -> "Result":
                progress = functools.partial(_show, bar)
                return engine(part, inside, settings, output_size=output_size, progress=progress)

            if context is None:
                return run(picture.pixels, mask, size)
            from ..pipeline import Result

            composite, mask = (geometry.resize(image, size) for image in (picture.pixels, mask))
            refined = crop.one_after_another(
                lambda part, inside: run(part, inside, None).refined, composite, mask, context
            )
            return Result(refined, refined)
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
