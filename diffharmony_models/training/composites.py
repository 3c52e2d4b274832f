"""make-composites: builds iHarmony4-shaped data from photos and masks, by changing the look of the foreground only.

    OUT/<subset>/composite_images/<img>_<mask>_<n>.jpg, OUT/<subset>/masks/<img>_<mask>.png, OUT/<subset>/real_images/<img>.jpg
    OUT/IHD_train.txt, OUT/IHD_test.txt (paths from OUT), OUT/manifest.jsonl (how each was made), OUT/settings.json

Every composite depends on the seed and on its photo alone, not on the number of workers nor on what was made before; it carries its own line of the
manifest as the file's comment, so a run that was killed goes on where it stood.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import re
import signal
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .. import images
from ..errors import InputError, disk_full, reason
from ..iharmony import COMPOSITES, MASKS, REALS
from ..numbers import real, whole
from .looks import change_look
from .regions import segment
from .sources import (
    LISTS,
    SETTINGS,
    Entry,
    digest,
    pick_reference,
    read_folders,
    read_index,
    read_settings,
    reference_pools,
    side,
)

log = logging.getLogger(__name__)
REFERENCE_SIDE = 256  # references are only looked at for their statistics
SMALLEST = 0.005  # a foreground under half a percent teaches nothing
ATTEMPTS = 3  # references tried for a composite before it is given up


# What a manifest row must hold for the lists and the report.
ROW = {
    "composite": str,
    "mask": str,
    "real": str,
    "split": str,
    "subset": str,
    "psnr": float,
    "fmse": float,
    "area": float,
}


class Unusable(InputError):
    """A photo or mask that cannot be used; the others can."""


class Unsuited(Unusable):
    """A mask that is as it should be, but of a foreground that teaches nothing."""


class Fault(str):
    """Why something was left out, where the input or the program is at fault, not just a foreground that fits badly."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="folder for the data set; a run that was stopped goes on when started again")
    parser.add_argument(
        "--index", help="JSON lines with image, mask and, optionally, source, group (scene), label, licence"
    )
    parser.add_argument(
        "--photos", help="folder of photos, instead of --index; photos in one subfolder count as one scene"
    )
    parser.add_argument(
        "--masks", help="folder of masks for --photos: a.png or a_0.png, a_1.png… for a.jpg; white is foreground"
    )
    parser.add_argument(
        "--unmasked",
        help="further photos without masks (JSON lines or a folder): foregrounds are segmented, colours borrowed",
    )
    parser.add_argument(
        "--unmasked-regions",
        type=whole(0, 1000),
        default=1,
        help="foregrounds to segment in each photo without a mask; 0: only borrow colours",
    )
    parser.add_argument("--per-mask", type=whole(1, 10_000), default=4, help="composites for each foreground")
    parser.add_argument(
        "--per-source-limit",
        type=whole(0),
        default=0,
        help="at most so many foregrounds of each source (0: all), so that none dominates",
    )
    parser.add_argument(
        "--limit", type=whole(0), default=0, help="at most so many foregrounds in all (0: all), drawn at random"
    )
    parser.add_argument(
        "--test-share",
        type=real(0, 1, below=True),
        default=0.08,
        help="share of the scenes that goes into IHD_test.txt",
    )
    parser.add_argument(
        "--strength",
        type=real(0.1, 2),
        default=1.0,
        help="of the changes; 1.0 is as strong as the hard part of iHarmony4",
    )
    parser.add_argument(
        "--size",
        type=whole(0, 65500),
        default=512,
        help="short side of what is written; larger photos are scaled down (0: never)",
    )
    parser.add_argument(
        "--format",
        choices=("jpg", "png"),
        default="jpg",
        help="of composites and real images; jpg is quality 95, 4:4:4",
    )
    parser.add_argument("--name", help="one subset of this name instead of one for each source")
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="decides the split and every change (default %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=whole(1, 1024),
        default=os.cpu_count() or 1,
        help="processes; the result is the same for any number",
    )


@dataclass(frozen=True)
class Task:
    """One photo with its foregrounds: (number, entry) for given masks, or a count of regions to segment."""

    entry: Entry
    name: str
    subset: str
    side: str
    masks: tuple[tuple[int, Entry], ...]
    regions: int = 0


def run(args: argparse.Namespace) -> int:
    """The command: `build` with the parsed arguments. Returns its exit code: 2 where a photo or a mask failed.

    Raises InputError for arguments or inputs that do not fit, OSError where the disk fails.
    """
    rows, failures = build(args)
    report(rows, failures)
    return 2 if any(isinstance(failure, Fault) for failure in failures) else 0


def build(args: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Makes what is not there yet. Returns (rows of the manifest, reasons why foregrounds were left out); raises as `run`."""
    from tqdm import tqdm

    _check(args)
    masked, unmasked = _entries(args)
    output = Path(args.output)
    _keep_settings(output, args)
    _remove_unfinished(output)  # of a run that was killed
    tasks = plan(masked, unmasked, args)
    pools = reference_pools(masked + unmasked, args.seed, args.test_share)
    rows, failures = [], []
    try:
        with tqdm(total=len(tasks), desc="make-composites", unit="photo", smoothing=0.05) as bar:
            for made, failed in _results(tasks, pools, args):
                rows += made
                failures += failed
                bar.update()
    except BaseException:
        _remove_unfinished(output)  # of workers that were stopped
        raise
    for failure in failures:
        log.warning("left out: %s", failure)
    if not rows:
        raise InputError(
            f"no composite could be made from {len(tasks)} photos; the first reason: {failures[0] if failures else 'no foreground fits'}"
        )
    _write_lists(output, rows)
    return rows, failures


def _remove_unfinished(output):
    for left in (*output.glob(".*.part"), *output.glob("*/*/.*.part")):
        left.unlink(missing_ok=True)


def report(rows, failures=()):
    """Logs how many composites there are of what, and how hard they are."""
    count = Counter((row["subset"], row["split"]) for row in rows)
    log.info(
        "composites: %s; foregrounds left out: %d",
        ", ".join(f"{s} {k} {n}" for (s, k), n in sorted(count.items())),
        len(failures),
    )
    for name, digits in (("psnr", 1), ("fmse", 0), ("area", 3)):
        values = np.array([row[name] for row in rows])
        shares = ", ".join(f"{np.percentile(values, p):.{digits}f}" for p in (5, 25, 50, 75, 95))
        log.info("%s: mean %.*f; percentiles 5, 25, 50, 75, 95: %s", name, digits, values.mean(), shares)


def _check(args: argparse.Namespace) -> None:
    if bool(args.index) == bool(args.photos) and not (args.unmasked and not args.index):
        raise InputError("give either --index or --photos (with --masks), or --unmasked alone")
    if args.masks and not args.photos:
        raise InputError("--masks needs --photos, the folder of the photos they belong to")
    if args.photos and not args.masks:
        raise InputError("--photos needs --masks; for photos without masks use --unmasked")


def _entries(args):
    masked, unmasked = [], []
    if args.index:
        entries = read_index(args.index)
        masked, unmasked = [e for e in entries if e.mask], [e for e in entries if not e.mask]
    elif args.photos:
        masked = read_folders(args.photos, args.masks)
    if args.unmasked:
        more = read_folders(args.unmasked) if Path(args.unmasked).is_dir() else read_index(args.unmasked)
        unmasked += [e for e in more if not e.mask]
    return masked, unmasked


def _keep_settings(output: Path, args: argparse.Namespace) -> None:
    """What decides a composite's content must not change between the runs that fill one folder."""
    settings = {name: getattr(args, name) for name in ("seed", "strength", "size", "format", "test_share", "name")}
    if (output / SETTINGS).is_file():
        before = read_settings(output)
        if before != settings:
            raise InputError(
                f"{output} was begun with {before}, now {settings} is asked for; go on with those settings or take another folder"
            )
        return
    images.write_bytes(output / SETTINGS, json.dumps(settings).encode())


# --- planning -----------------------------------------------------------------------------------------------------------------------


def plan(masked, unmasked, args):
    """The tasks, one a photo. Which foregrounds are taken under a limit is drawn by hash, so it depends on the seed alone."""
    numbers = defaultdict(list)
    for entry in masked:
        numbers[entry.image].append(entry)
    wanted = [(e, i) for entries in numbers.values() for i, e in enumerate(entries)]
    if args.unmasked_regions:
        wanted += [(e, 0) for e in unmasked if e.image not in numbers]
    names = _names([entry for entry, _ in wanted], args.name)
    wanted.sort(key=lambda pair: digest("draw", args.seed, pair[0].source, pair[0].key))
    taken, per_source = [], Counter()
    for entry, number in wanted:
        weight = 1 if entry.mask else args.unmasked_regions
        if args.per_source_limit and per_source[entry.source] + weight > args.per_source_limit:
            continue
        if args.limit and sum(per_source.values()) + weight > args.limit:
            break
        per_source[entry.source] += weight
        taken.append((entry, number))
    photos = defaultdict(list)
    for entry, number in taken:
        photos[entry.image].append((number, entry))
    tasks = []
    for image in sorted(photos, key=lambda image: photos[image][0][1].key):
        first = photos[image][0][1]
        given = tuple(sorted(((n, e) for n, e in photos[image] if e.mask), key=lambda pair: pair[0]))
        tasks.append(
            Task(
                first,
                *names[image],
                side(first, args.seed, args.test_share),
                given,
                0 if given else args.unmasked_regions,
            )
        )
    return tasks


def _names(entries, subset):
    """{image: (name, subset)}, each pair once. Made from all entries, so that a limit raised later renames nothing."""
    names, taken = {}, set()
    for entry in sorted(entries, key=lambda entry: entry.key):
        if entry.image in names:
            continue
        pair = _clean(Path(entry.image).stem), _clean(subset or entry.source)
        if pair in taken:
            pair = f"{pair[0]}-{digest(entry.key) % 16**8:08x}", pair[1]
        taken.add(pair)
        names[entry.image] = pair
    return names


def _clean(name):
    """Letters, digits and hyphens: an underscore would break <img>_<mask>_<n>."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "photo"


# --- making -------------------------------------------------------------------------------------------------------------------------

_STATE = {}


def _begin(pools, args):
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the main process tells it and tidies up
    torch.set_num_threads(1)
    _STATE.update(pools=pools, args=args)


def _results(tasks, pools, args):
    if args.workers == 1:
        yield from (attempt(task, pools, args) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=_begin, initargs=(pools, args)) as executor:
        try:
            yield from executor.map(_make, tasks, chunksize=4)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _make(task):
    return attempt(task, _STATE["pools"], _STATE["args"])


def attempt(task, pools, args):
    """`make`; a fault met in one photo, of whatever kind, is that photo's, but for a disk that takes no more."""
    try:
        return make(task, pools, args)
    except Exception as error:
        if disk_full(error):
            raise
        return [], [Fault(f"{task.entry.image}: {reason(error, log)}")]


def make(task, pools, args):
    """All composites of one photo. Returns (manifest rows, reasons for what was left out); what already lies there is not made again."""
    numbers = [number for number, _ in task.masks] or range(task.regions)
    finished = [_comment(_path(task, number, n, args)) for number in numbers for n in range(1, args.per_mask + 1)]
    if None not in finished:
        return finished, []
    try:
        real = read_photo(task.entry.image, args.size)
    except Unusable as error:
        return [], [Fault(error)]
    picture = real.astype(np.float32) / 255
    rows, failures = [], []
    for number, entry, mask in _foregrounds(task, real.shape[:2], picture, args, failures):
        made = 0
        for n in range(1, args.per_mask + 1):
            path = _path(task, number, n, args)
            row = _comment(path)
            if row is None:
                rng = np.random.default_rng([args.seed, digest(entry.key), number, n])
                composite, note = _composite(picture, real, mask, entry, task.side, pools, rng, args.strength)
                if composite is None:
                    continue
                row = {
                    "composite": f"{task.subset}/{COMPOSITES}/{path.name}",
                    "mask": f"{task.subset}/{MASKS}/{task.name}_{number + 1}.png",
                    "real": f"{task.subset}/{REALS}/{task.name}.{args.format}",
                    "split": task.side,
                    "subset": task.subset,
                    "source": entry.source,
                    "group": entry.group,
                    "label": entry.label,
                    "licence": entry.licence,
                    "area": round(float(mask.mean()), 4),
                    "strength": args.strength,
                    **note,
                }
                # The composite last: where it lies, its mask and its real picture lie too.
                save(Path(args.output) / row["real"], real)
                save(Path(args.output) / row["mask"], mask.astype(np.uint8) * 255)
                save(path, composite, json.dumps(row))
            rows.append(row)
            made += 1
        if not made:
            failures.append(f"{entry.mask or entry.image}: no plausible change found")
    return rows, failures


def _path(task, number, n, args):
    return Path(args.output) / task.subset / COMPOSITES / f"{task.name}_{number + 1}_{n}.{args.format}"


def _foregrounds(task, size, picture, args, failures):
    """(number, entry, mask HxW bool) of the task's foregrounds, given or segmented."""
    for number, entry in task.masks:
        try:
            yield number, entry, read_mask(entry.mask, task.entry.image, size)
        except Unusable as error:
            failures.append(str(error) if isinstance(error, Unsuited) else Fault(error))
    if task.regions:
        rng = np.random.default_rng([args.seed, digest("regions", task.entry.key)])
        for number, mask in enumerate(segment(picture, rng, task.regions)):
            yield number, task.entry, mask


def _composite(picture, real, mask, entry, where, pools, rng, strength):
    """(composite HxWx3 uint8, note), the background bit by bit `real`'s; (None, None) where no draw is plausible."""
    for _ in range(ATTEMPTS):
        other = pick_reference(entry, where, pools, rng)
        reference = None
        if other is not None:
            try:
                reference = read_reference(other, rng)
            except Unusable:
                other = None
        changed, note = change_look(picture, mask, rng, reference, strength)
        if note["plausible"]:
            del note["plausible"]
            if note["kind"] == "transfer":
                note["reference"] = other.key.split("|")[0]
            composite = real.copy()
            composite[mask] = (changed[mask] * 255 + 0.5).astype(np.uint8)
            return composite, note
    return None, None


# --- files --------------------------------------------------------------------------------------------------------------------------


def read_photo(path, short_side=0):
    """(H, W, 3) uint8, scaled down to `short_side` where that is smaller (0: never). Unusable if unreadable."""
    try:
        pixels = images.to_bytes(images.read_image(path).pixels)
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a photo ({error})") from error
    height, width = pixels.shape[:2]
    if not short_side or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    return np.asarray(
        Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.LANCZOS)
    )


def read_mask(path, photo, size):
    """(H, W) bool at the given size. Unusable where it is unreadable, of other proportions than its photo, empty, too small or all of the picture."""
    try:
        mask = Image.fromarray(images.read_mask(path)[0, 0].numpy())
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a mask ({error})") from error
    height, width = size
    if abs(mask.width * height - mask.height * width) > 2 * max(mask.width, mask.height, width, height):
        raise Unusable(
            f"{path}: the mask is {mask.width}x{mask.height}, its photo {photo} {width}x{height} after scaling; both must have the same proportions"
        )
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.BILINEAR)
    mask = np.asarray(mask) >= 0.5
    if not SMALLEST <= mask.mean() <= 0.95:
        raise Unsuited(
            f"{path}: the foreground covers {mask.mean():.1%} of the picture; expected {SMALLEST:.1%} to 95 %"
        )
    return mask


def read_reference(entry, rng):
    """(picture HxWx3 float32 in [0, 1], mask HxW bool): the entry's foreground, or a random window of a photo without mask."""
    picture = read_photo(entry.image, REFERENCE_SIDE)
    if entry.mask:
        mask = read_mask(entry.mask, entry.image, picture.shape[:2])
    else:
        mask = np.zeros(picture.shape[:2], bool)
        window = [
            slice(start, start + length) for start, length in (_window(side_length, rng) for side_length in mask.shape)
        ]
        mask[tuple(window)] = True
    return picture.astype(np.float32) / 255, mask


def _window(length, rng):
    part = max(4, int(length * rng.uniform(0.25, 0.9)))
    return int(rng.integers(max(1, length - part))), part


def save(path: Path, pixels: np.ndarray, comment: str | None = None) -> None:
    """Writes uint8 pixels by the extension, whole or not at all; JPEG at quality 95 without chroma subsampling. A real picture or mask already there stays."""
    if comment is None and os.path.isfile(path) and os.path.getsize(path):
        return
    image, content = Image.fromarray(pixels), io.BytesIO()
    if path.suffix == ".png":
        info = PngImagePlugin.PngInfo()
        if comment:
            info.add_text("comment", comment)
        image.save(content, "PNG", pnginfo=info)
    else:
        more = {"comment": comment.encode()} if comment else {}
        image.save(content, "JPEG", quality=95, subsampling=0, **more)
    images.write_bytes(path, content.getbuffer())


def _comment(path: Path) -> dict | None:
    """The manifest row that a finished composite carries; None where there is none."""
    if not path.is_file():
        return None
    try:
        with images.opened(path) as file:
            row = json.loads(file.info["comment"])
            own = row["composite"] == "/".join(path.parts[-3:])
            return row if own and {name: type(row[name]) for name in ROW} == ROW else None
    except InputError:
        return None


def _write_lists(output: Path, rows: list[dict]) -> None:
    for split in LISTS:
        names = [row["composite"] for row in rows if row["split"] == split]
        if not names:
            log.warning("no photo fell on the %s side; give more photos or another --test-share", split)
        images.write_bytes(output / LISTS[split], "".join(f"{name}\n" for name in names).encode())
    images.write_bytes(output / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
