"""What `benchmark` measures on this machine, as Markdown tables: time and memory.

The demo command from start to file; full-size SD 1.5 inpainting weights (random ones) through our pipeline and through
a plain diffusers loop; importing the package; and, where a ComfyUI is given, our nodes beside its own inpainting graph.
"""

import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..devices import default_dtype, find_device
from ..errors import InputError
from .commands import demo, importing
from .full import full
from .host import host
from .processes import PACKAGE

PARTS = ("demo", "full", "import", "host")


@dataclass(frozen=True)
class Settings:
    """only: one of `PARTS`; None: all, the host's where there is one. device: "auto" is the best there is. repeats:
    runs behind each figure. steps: of sampling. comfyui: the folder with its main.py. checkpoint: of the demo command,
    None: the bundled one. Of full-size weights: resolution, None: 512, in ComfyUI 1024; dtype: what is run beside
    float32, None: what suits the device; widths: of UNet and VAE, multiples of 32.
    """

    only: str | None = None
    device: str = "auto"
    repeats: int = 3
    steps: int = 5
    comfyui: Path | None = None
    checkpoint: Path | None = None
    resolution: int | None = None
    dtype: torch.dtype | None = None
    widths: tuple[int, ...] | None = None


def run(settings: Settings) -> dict[str, Any]:
    """Measures, and writes each part's table to stdout as soon as it is there.

    Returns:
        The figures by part. The tables say whether bounds are met.

    Raises:
        InputError: bad settings; a measured command that failed, in its own words; too little memory.
        OSError: no room for the random weights.
    """
    _check(settings)
    device = find_device(settings.device)
    machine = _machine(device)
    figures: dict[str, Any] = {"machine": machine}
    _say(", ".join(f"{key} {value}" for key, value in machine.items()))
    chosen = [settings.only] if settings.only else [name for name in PARTS if name != "host" or settings.comfyui]
    with tempfile.TemporaryDirectory(prefix="diffharmony-benchmark-") as folder:
        for name in chosen:
            figures[name], text = _part(name, settings, device, Path(folder))
            _say(text)
    return figures


def _part(name: str, settings: Settings, device: torch.device, folder: Path) -> tuple[dict, str]:
    """The figures and the text of one of `PARTS`."""
    repeats, steps = settings.repeats, settings.steps
    if name == "demo":
        return demo(settings.checkpoint, settings.device, repeats, folder)
    if name == "import":
        return importing(repeats)
    if name == "full":
        dtype = settings.dtype or default_dtype(device)
        return full(device, dtype, settings.resolution or 512, steps, repeats, settings.widths, folder)
    assert settings.comfyui is not None
    return host(settings.comfyui, device, settings.resolution or 1024, steps, repeats, folder)


def _check(settings: Settings) -> None:
    if settings.only == "host" and settings.comfyui is None:
        raise InputError("--only host needs --comfyui DIR, the folder with ComfyUI's main.py")
    if settings.comfyui is not None and not (settings.comfyui / "main.py").is_file():
        raise InputError(f"--comfyui {settings.comfyui}: there is no main.py; give ComfyUI's own folder")


def _machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    packages = {name: version(name) for name in ("torch", "diffusers")}
    return {
        PACKAGE: __version__,
        "Python": platform.python_version(),
        **packages,
        "device": name,
        "CPU cores": str(cores),
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n\n")
    sys.stdout.flush()
