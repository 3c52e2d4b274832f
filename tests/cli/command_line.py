"""The command line as a user meets it: pictures for it, and what it says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from diffharmony_models.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 72, 100


def make_pair(
    folder: Path, name: str = "a", mask_name: str | None = None, number: int = 0, extension: str = "png"
) -> tuple[Path, Path]:
    """A composite and its mask in folder/composites and folder/masks: noise over a gradient, a box in the middle."""
    composites, masks = folder / "composites", folder / "masks"
    composites.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    pixels = np.random.default_rng(number).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:52, 30:70] = 255
    paths = composites / f"{name}.{extension}", masks / f"{mask_name or name}.png"
    Image.fromarray(pixels).save(paths[0])
    Image.fromarray(mask).save(paths[1])
    return paths


def command(*argv) -> int:
    return main([str(argument) for argument in argv])


def said(capsys) -> str:
    """What stands on stderr; also: nothing there may look like a traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def refused(capsys, *argv) -> str:
    """Runs a command that must end in exit code 2 with exactly one line."""
    assert command(*argv) == 2
    text = said(capsys)
    assert text.count("\n") == 1 and text.startswith("error: "), text
    return text


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def python(*argv, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
