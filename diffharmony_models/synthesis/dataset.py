"""make-composites: builds iHarmony4-shaped data from photos and masks, by the composites of `composites.make`.

    OUT/<subset>/composite_images/<img>_1_1.jpg, OUT/<subset>/masks/<img>_1.png, OUT/<subset>/real_images/<img>.jpg
    OUT/<subset>/photos/<name>.jpg (the photo as it was, for trainers that make composites of their own)
    OUT/IHD_train.txt, OUT/IHD_test.txt (paths from OUT), OUT/manifest.jsonl (how each was made), OUT/settings.json

The real picture has a look of its own, so each composite has its own: <img> is <name>-<foreground>-<n>. Every composite
depends on the seed, its foreground and its number alone, not on the number of workers nor on what was made before; it
carries its own line of the manifest as the file's comment, so a run that was killed goes on where it stood.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import multiprocessing
import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError, disk_full, reason
from ..files import images
from ..files.iharmony import COMPOSITES, MASKS, REALS
from ..files.opening import opened
from ..numbers import real, whole
from . import composites
from .regions import segment
from .sources import (
    LISTS,
    MANIFEST,
    PHOTOS,
    SETTINGS,
    Entry,
    Pools,
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
ATTEMPTS = 3  # draws for a composite before it is given up
FAINTEST = 1.0  # the foreground's mean squared error, of 255², under which nothing was changed
FORMAT = ".jpg"
# Of the `composites.KINDS`; not those without any change, which are for training and nothing to be measured by.
SHARES = tuple(
    0.0 if kind == "none" else share for kind, share in zip(composites.KINDS, composites.SHARES, strict=True)
)


# What a manifest row must hold for the lists and the report.
ROW = {
    "composite": str,
    "mask": str,
    "real": str,
    "photo": str,
    "foreground": int,
    "split": str,
    "subset": str,
    "kind": str,
    "local": bool,
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
        "--unmasked", help="further photos without masks (JSON lines or a folder): a foreground is segmented in each"
    )
    parser.add_argument("--per-mask", type=whole(1, 10_000), default=4, help="composites for each foreground")
    parser.add_argument(
        "--local-share",
        type=real(0, 1),
        default=0.3,
        help="share of the composites whose foreground has a second light on one side (default %(default)s)",
    )
    parser.add_argument(
        "--test-share",
        type=real(0, 1, below=True),
        default=0.08,
        help="share of the scenes that goes into IHD_test.txt",
    )
    parser.add_argument(
        "--size",
        type=whole(0, 65500),
        default=512,
        help="short side of what is written; larger photos are scaled down (0: never)",
    )
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
    """One photo with its foregrounds: (number, entry) for given masks; without, one is segmented."""

    entry: Entry
    name: str
    subset: str
    side: str
    masks: tuple[tuple[int, Entry], ...]

    def path(self, kind: str, name: str) -> str:
        """The place in the data set, as its lists and its manifest say it."""
        return f"{self.subset}/{kind}/{name}"


def run(args: argparse.Namespace) -> int:
    """The command: `build` with the parsed arguments. Returns its exit code: 2 where a photo or a mask failed.

    Raises InputError for arguments or inputs that do not fit, OSError where the disk fails.
    """
    rows, failures = build(args)
    report(rows, failures)
    return 2 if any(isinstance(failure, Fault) for failure in failures) else 0


def build(args: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Makes what is not there yet.

    Returns (rows of the manifest, reasons why foregrounds were left out); raises as `run`.
    """
    from tqdm import tqdm

    _check(args)
    masked, unmasked = _entries(args)
    output = Path(args.output)
    _keep_settings(output, args)
    _remove_unfinished(output)  # of a run that was killed
    tasks = plan(masked, unmasked, args)
    pools = reference_pools(masked + unmasked, args.seed, args.test_share)
    rows: list[dict] = []
    failures: list[str] = []
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
            f"no composite could be made from {len(tasks)} photos; the first reason: "
            f"{failures[0] if failures else 'no foreground fits'}"
        )
    _write_lists(output, rows)
    return rows, failures


def _remove_unfinished(output: Path) -> None:
    for left in (*output.glob(".*.part"), *output.glob("*/*/.*.part")):
        left.unlink(missing_ok=True)


def report(rows: list[dict], failures: Sequence[str] = ()) -> None:
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


def _entries(args: argparse.Namespace) -> tuple[list[Entry], list[Entry]]:
    masked: list[Entry] = []
    unmasked: list[Entry] = []
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
    settings = {name: getattr(args, name) for name in ("seed", "local_share", "size", "test_share")}
    if (output / SETTINGS).is_file():
        before = read_settings(output)
        if before != settings:
            raise InputError(
                f"{output} was begun with {before}, now {settings} is asked for; go on with those settings or take "
                "another folder"
            )
        return
    images.write_bytes(output / SETTINGS, json.dumps(settings).encode())


# --- planning ---


def plan(masked: list[Entry], unmasked: list[Entry], args: argparse.Namespace) -> list[Task]:
    """The tasks, one a photo."""
    photos = defaultdict(list)
    for entry in masked:
        photos[entry.image].append(entry)
    given = {image: tuple(enumerate(entries, 1)) for image, entries in photos.items()}
    for entry in unmasked:
        photos.setdefault(entry.image, [entry])
    names = _names([entry for entries in photos.values() for entry in entries])
    tasks = [
        Task(entries[0], *names[image], side(entries[0], args.seed, args.test_share), given.get(image, ()))
        for image, entries in photos.items()
    ]
    return sorted(tasks, key=lambda task: task.entry.key)


def _names(entries: list[Entry]) -> dict[str, tuple[str, str]]:
    """{image: (name, subset)}, each pair once."""
    names: dict[str, tuple[str, str]] = {}
    taken = set()
    for entry in sorted(entries, key=lambda entry: entry.key):
        if entry.image in names:
            continue
        pair = _clean(Path(entry.image).stem), _clean(entry.source)
        if pair in taken:
            pair = f"{pair[0]}-{digest(entry.key) % 16**8:08x}", pair[1]
        taken.add(pair)
        names[entry.image] = pair
    return names


def _clean(name: str) -> str:
    """Letters, digits and hyphens: an underscore would break <img>_<mask>_<n>."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "photo"


# --- making ---

_STATE: dict = {}


def _begin(pools: Pools, args: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the main process tells it and tidies up
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    _STATE.update(pools=pools, args=args)


Made = tuple[list[dict], list[str]]
"""Rows of the manifest, reasons for what was left out."""


def _results(tasks: list[Task], pools: Pools, args: argparse.Namespace) -> Iterator[Made]:
    if args.workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: how a sum is cut up decides its last bit
        try:
            yield from (attempt(task, pools, args) for task in tasks)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=_begin, initargs=(pools, args)) as executor:
        try:
            with _without_ctrl_c():
                made = executor.map(_make, tasks, chunksize=4)
            yield from made
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started in here are deaf to Ctrl-C until `_begin`: one that is only starting would print a
    traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make(task: Task) -> Made:
    return attempt(task, _STATE["pools"], _STATE["args"])


def attempt(task: Task, pools: Pools, args: argparse.Namespace) -> Made:
    """`make`; a fault met in one photo, of whatever kind, is that photo's, but for a disk that takes no more."""
    try:
        return make(task, pools, args)
    except Exception as error:
        if disk_full(error):
            raise
        return [], [Fault(f"{task.entry.image}: {reason(error, log)}")]


def make(task: Task, pools: Pools, args: argparse.Namespace) -> Made:
    """All composites of one photo; what already lies there is not made again."""
    numbers = [number for number, _ in task.masks] or [1]
    output = Path(args.output)
    finished = [
        _comment(output / _composite_path(task, number, n)) for number in numbers for n in range(1, args.per_mask + 1)
    ]
    if None not in finished:
        return [row for row in finished if row is not None], []
    try:
        photo = read_photo(task.entry.image, args.size)
    except Unusable as error:
        return [], [Fault(error)]
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    rows: list[dict] = []
    failures: list[str] = []
    for number, entry, mask in _foregrounds(task, photo, args, failures):
        made = 0
        for n in range(1, args.per_mask + 1):
            path = output / _composite_path(task, number, n)
            row = _comment(path)
            if row is None:
                pair = _pair(pixels, mask, entry, number, n, task.side, pools, args)
                if pair is None:
                    continue
                row = _row(task, entry, number, n, mask, pair)
                # The composite last: where it lies, its mask, its real picture and its photo lie too.
                save(output / row["photo"], photo)
                save(output / row["real"], pair.real)
                save(output / row["mask"], mask.astype(np.uint8) * 255)
                save(path, pair.composite, json.dumps(row))
            rows.append(row)
            made += 1
        if not made:
            failures.append(f"{entry.mask or entry.image}: every change drawn for it was too faint")
    return rows, failures


def _composite_path(task: Task, number: int, n: int) -> str:
    return task.path(COMPOSITES, f"{task.name}-{number}-{n}_1_1{FORMAT}")


def _foregrounds(
    task: Task, photo: np.ndarray, args: argparse.Namespace, failures: list[str]
) -> Iterator[tuple[int, Entry, np.ndarray]]:
    """(number, entry, mask HxW bool) of the task's foregrounds, given or segmented."""
    for number, entry in task.masks:
        assert entry.mask is not None
        try:
            yield number, entry, read_mask(entry.mask, task.entry.image, photo.shape[:2])
        except Unusable as error:
            failures.append(str(error) if isinstance(error, Unsuited) else Fault(error))
    if not task.masks:
        rng = np.random.default_rng([args.seed, digest("regions", task.entry.key)])
        for mask in segment(photo.astype(np.float32) / 255, rng):
            yield 1, task.entry, mask


@dataclass(frozen=True)
class Pair:
    """A composite and its truth as they are written: HxWx3 uint8."""

    composite: np.ndarray
    real: np.ndarray
    kind: str
    local: bool

    def squares(self) -> np.ndarray:
        """HxW: the squared error, mean of the channels, of 255²."""
        return np.square(self.composite.astype(np.float32) - self.real).mean(2)


def _pair(
    photo: torch.Tensor,
    mask: np.ndarray,
    entry: Entry,
    number: int,
    n: int,
    where: str,
    pools: Pools,
    args: argparse.Namespace,
) -> Pair | None:
    """Composite number n of a foreground; None where every draw leaves it as it was. photo: [1, 3, H, W] in [0, 1]."""
    rng = np.random.default_rng([args.seed, digest(entry.key), number, n])
    inside = torch.from_numpy(mask)[None, None].float()
    for _ in range(ATTEMPTS):
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        pairs = composites.make(
            photo,
            inside,
            generator,
            _reference(entry, where, pools, rng),
            shares=SHARES,
            local_share=args.local_share,
        )
        composite, truth = (
            (picture[0].permute(1, 2, 0) * 255).round().byte().numpy() for picture in (pairs.composite, pairs.real)
        )
        pair = Pair(composite, truth, composites.KINDS[int(pairs.kind)], bool(pairs.local))
        if pair.squares()[mask].mean() >= FAINTEST:
            return pair
    return None


def _reference(
    entry: Entry, where: str, pools: Pools, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and covariance of another scene's foreground; None where there is none, or none that can be read."""
    other = pick_reference(entry, where, pools, rng)
    if other is None:
        return None
    try:
        picture, mask = read_reference(other, rng)
    except Unusable:
        return None
    return composites.statistics(
        torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, torch.from_numpy(mask)[None, None].float()
    )


def _row(task: Task, entry: Entry, number: int, n: int, mask: np.ndarray, pair: Pair) -> dict:
    """A line of the manifest."""
    squares = pair.squares()
    image = f"{task.name}-{number}-{n}"
    return {
        "composite": _composite_path(task, number, n),
        "mask": task.path(MASKS, f"{image}_1.png"),
        "real": task.path(REALS, f"{image}{FORMAT}"),
        "photo": task.path(PHOTOS, f"{task.name}{FORMAT}"),
        "foreground": number,
        "split": task.side,
        "subset": task.subset,
        "source": entry.source,
        "group": entry.group,
        # None says that we segmented the foreground ourselves; a mask that was given may have no label, too.
        "label": (entry.label or "") if entry.mask else None,
        "licence": entry.licence,
        "kind": pair.kind,
        "local": pair.local,
        "area": round(float(mask.mean()), 4),
        "fmse": round(float(squares[mask].mean()), 1),
        "psnr": round(10 * math.log10(255**2 / float(squares.mean())), 2),
    }


# --- files ---


def read_photo(path: str, short_side: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, scaled down to `short_side` where that is smaller (0: never). Unusable if unreadable."""
    try:
        pixels = images.to_bytes(images.read_image(path).pixels)
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a photo ({error})") from error
    height, width = pixels.shape[:2]
    if not short_side or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def read_mask(path: str, photo: str, size: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool at the given size.

    Unusable where it is unreadable, of other proportions than its photo, empty, too small or all of the picture.
    """
    try:
        mask = Image.fromarray(images.read_mask(path)[0, 0].numpy())
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a mask ({error})") from error
    height, width = size
    if abs(mask.width * height - mask.height * width) > 2 * max(mask.width, mask.height, width, height):
        raise Unusable(
            f"{path}: the mask is {mask.width}x{mask.height}, its photo {photo} {width}x{height} after scaling; both "
            "must have the same proportions"
        )
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    inside = np.asarray(mask) >= 0.5
    if not SMALLEST <= inside.mean() <= 0.95:
        raise Unsuited(
            f"{path}: the foreground covers {inside.mean():.1%} of the picture; expected {SMALLEST:.1%} to 95 %"
        )
    return inside


def read_reference(entry: Entry, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(picture HxWx3 uint8, mask HxW bool): the entry's foreground, or a random window of a photo without mask."""
    picture = read_photo(entry.image, REFERENCE_SIDE)
    if entry.mask:
        return picture, read_mask(entry.mask, entry.image, picture.shape[:2])
    mask = np.zeros(picture.shape[:2], bool)
    (top, height), (left, width) = (_window(length, rng) for length in mask.shape)
    mask[top : top + height, left : left + width] = True
    return picture, mask


def _window(length: int, rng: np.random.Generator) -> tuple[int, int]:
    part = max(4, int(length * rng.uniform(0.25, 0.9)))
    return int(rng.integers(max(1, length - part))), part


def save(path: Path, pixels: np.ndarray, comment: str | None = None) -> None:
    """Writes uint8 pixels by the extension, whole or not at all; JPEG at quality 95 without chroma subsampling.

    A picture without a comment that is there already stays.
    """
    if comment is None and os.path.isfile(path) and os.path.getsize(path):
        return
    image, content = Image.fromarray(pixels), io.BytesIO()
    if path.suffix == ".png":
        image.save(content, "PNG")
    else:
        more = {"comment": comment.encode()} if comment else {}
        image.save(content, "JPEG", quality=95, subsampling=0, **more)
    images.write_bytes(path, content.getbuffer())


def _comment(path: Path) -> dict | None:
    """The manifest row that a finished composite carries; None where there is none."""
    if not path.is_file():
        return None
    try:
        with opened(path) as file:
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
    images.write_bytes(output / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows).encode())
