"""The folder that `make-composites` fills: what is written where, and what of it is there already."""

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import writing
from ..files.opening import opened
from .sources import LISTS, MANIFEST, SETTINGS, read_settings

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""A line of the manifest: how a composite was made."""

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
"""What a row must hold for the lists and the report."""


def keep_settings(output: Path, settings: dict[str, int | float]) -> None:
    """Writes what decides a composite's content, which must not change between the runs that fill one folder.

    Raises:
        InputError: the folder was begun with other settings.
    """
    if not (output / SETTINGS).is_file():
        writing.write_bytes(output / SETTINGS, json.dumps(settings).encode())
    elif (before := read_settings(output)) != settings:
        raise InputError(
            f"{output} was begun with {before}, now {settings} is asked for; go on with those settings or take "
            "another folder"
        )


def remove_unfinished(output: Path) -> None:
    """What a run that was killed had not finished writing."""
    for folder in (output, *output.glob("*/*")):
        writing.remove_leftovers(folder)


def save(path: Path, pixels: np.ndarray, row: Row | None = None) -> None:
    """Writes uint8 pixels by the extension, whole or not at all; JPEG at quality 95 without chroma subsampling.

    A composite carries its row of the manifest as its comment. A picture without one that is there already stays.
    """
    if row is None and os.path.isfile(path) and os.path.getsize(path):
        return
    image, content = Image.fromarray(pixels), io.BytesIO()
    if path.suffix == ".png":
        image.save(content, "PNG")
    else:
        more = {"comment": json.dumps(row).encode()} if row else {}
        image.save(content, "JPEG", quality=95, subsampling=0, **more)
    writing.write_bytes(path, content.getbuffer())


def finished(path: Path) -> Row | None:
    """The row that a finished composite carries; None where there is none."""
    if not path.is_file():
        return None
    try:
        with opened(path) as file:
            row = json.loads(file.info["comment"])
            own = row["composite"] == "/".join(path.parts[-3:])
            return row if own and {name: type(row[name]) for name in ROW} == ROW else None
    except InputError:
        return None


def write_lists(output: Path, rows: list[Row]) -> None:
    """Writes the list of each side of the split, and the manifest."""
    for split in LISTS:
        names = [row["composite"] for row in rows if row["split"] == split]
        if not names:
            log.warning("no photo fell on the %s side; give more photos or another --test-share", split)
        writing.write_bytes(output / LISTS[split], "".join(f"{name}\n" for name in names).encode())
    writing.write_bytes(output / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows).encode())


def report(rows: list[Row], failures: Sequence[str] = ()) -> None:
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
