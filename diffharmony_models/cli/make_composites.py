"""`make-composites`: builds training pairs from photos and masks."""

import argparse
import os
from pathlib import Path

from ..errors import InputError
from ..numbers import real, whole
from ..synthesis import dataset, folder, sources
from ..synthesis.making import Fault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    settings = dataset.Settings()
    parser.add_argument(
        "output", type=Path, help="folder for the data set; a run that was stopped goes on when started again"
    )
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
    parser.add_argument(
        "--per-mask",
        type=whole(1, 10_000),
        default=settings.per_mask,
        help="composites for each foreground (default %(default)s)",
    )
    parser.add_argument(
        "--test-share",
        type=real(0, 1, below=True),
        default=settings.test_share,
        help="share of the scenes that goes into IHD_test.txt (default %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=whole(0, 65500),
        default=settings.size,
        help="short side of what is written; larger photos are scaled down (0: never; default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0, 2**63 - 1),
        default=settings.seed,
        help="decides the split and every change (default %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=whole(1, 1024),
        default=os.cpu_count() or 1,
        help="processes; the result is the same for any number",
    )


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 2 where a photo or a mask failed.

    Raises:
        InputError: arguments or inputs that do not fit.
        OSError: the disk fails.
    """
    settings = dataset.Settings(args.per_mask, args.size, args.test_share, args.seed)
    rows, failures = dataset.build(_entries(args), args.output, settings, args.workers)
    folder.report(rows, failures)
    return 2 if any(isinstance(failure, Fault) for failure in failures) else 0


def _entries(args: argparse.Namespace) -> list[sources.Entry]:
    if bool(args.index) == bool(args.photos) and not (args.unmasked and not args.index):
        raise InputError("give either --index or --photos (with --masks), or --unmasked alone")
    if args.masks and not args.photos:
        raise InputError("--masks needs --photos, the folder of the photos they belong to")
    if args.photos and not args.masks:
        raise InputError("--photos needs --masks; for photos without masks use --unmasked")
    entries: list[sources.Entry] = []
    if args.index:
        entries = sources.read_index(args.index)
    elif args.photos:
        entries = sources.read_folders(args.photos, args.masks)
    if args.unmasked:
        folder_given = Path(args.unmasked).is_dir()
        more = sources.read_folders(args.unmasked) if folder_given else sources.read_index(args.unmasked)
        entries += [entry for entry in more if not entry.mask]
    return entries
