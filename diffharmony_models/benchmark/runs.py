"""The `benchmark` command: time and memory on this machine, as Markdown tables.

The demo command from start to file; full-size SD 1.5 inpainting weights (random ones) through our pipeline and through
a plain diffusers loop in the same run; importing the package; and, where a ComfyUI is given, our nodes beside its own
inpainting graph. Each figure is of a process of its own, started for it, so that neither memory nor warmth is handed
on. MB are 10⁶ bytes.
"""

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..devices import default_dtype, find_device
from ..errors import InputError
from ..evaluation import metrics
from .loops import UNET_WIDTHS, VAE_WIDTHS, last_line, random_checkpoint

logger = logging.getLogger(__name__)

PACKAGE = "diffharmony_models"
PARTS = ("demo", "full", "import", "host")
DEMO_SECONDS, DEMO_MB = 20, 1500  # the bounds, on two CPU cores
IMPORT_SECONDS = 3
EQUAL = 200.0  # dB that stand for pictures without any difference
HEAVY = ("diffusers", "transformers", "accelerate", "torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "workflows" / "pictures"

# Runs a command and notes its time and memory. A process of its own, and a small one: on Linux a new process starts
# with the peak memory of the one that started it. ru_maxrss is in bytes on macOS, in kilobytes elsewhere; Windows has
# none.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[2:])
if hasattr(os, "wait4"):
    _, status, usage = os.wait4(child.pid, 0)
    code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
else:
    code, peak = child.wait(), None
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "seconds": time.monotonic() - start, "peak": peak}, file)
"""

_IMPORT = f"""
import sys, time
start = time.perf_counter()
import diffharmony_models
seconds = time.perf_counter() - start
print(seconds, *[name for name in {HEAVY} if name in sys.modules])
"""


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
    parts = {"demo": _demo, "full": _full, "import": _import, "host": _host}
    chosen = [settings.only] if settings.only else [name for name in PARTS if name != "host" or settings.comfyui]
    with tempfile.TemporaryDirectory(prefix="diffharmony-benchmark-") as folder:
        for name in chosen:
            figures[name], text = parts[name](settings, device, Path(folder))
            _say(text)
    return figures


# The three parts: each returns its figures and its text.


def _demo(settings: Settings, device: torch.device, folder: Path) -> tuple[dict, str]:
    composite, mask = EXAMPLES / "astronaut.jpg", EXAMPLES / "astronaut_mask.png"
    if not composite.is_file():
        raise InputError(f"{composite} is not there: the examples come with the repository, not with the package")
    result, found = folder / "demo.png", []
    command = [sys.executable, "-m", PACKAGE, "harmonize", composite, mask, result]
    command += [] if settings.checkpoint is None else ["--checkpoint", settings.checkpoint]
    command += [] if settings.device == "auto" else ["--device", settings.device]
    for _ in tqdm(range(settings.repeats), desc="demo command", unit="run", disable=None):
        result.unlink(missing_ok=True)
        found.append(_launch(command, folder))
        if not result.is_file():
            raise RuntimeError(f"{' '.join(map(str, command))} ended well but wrote no file")
    figures = {"bound_seconds": DEMO_SECONDS, "bound_mb": DEMO_MB, **_summary(found)}
    rows = [("ours", *_cells(figures)), ("bound, on two CPU cores", f"{DEMO_SECONDS:.1f}", f"{DEMO_MB}")]
    return figures, _table((f"demo command ({composite.name}), from start to file", "seconds", "peak MB"), rows)


def _full(settings: Settings, device: torch.device, folder: Path) -> tuple[dict, str]:
    from .. import checkpoint

    weights, resolution = folder / "random.safetensors", settings.resolution or 512
    unet_widths, vae_widths = (settings.widths, settings.widths) if settings.widths else (UNET_WIDTHS, VAE_WIDTHS)
    usual = _name(settings.dtype or default_dtype(device))
    kinds = ["float32"] + [usual] * (usual != "float32")
    found: dict[tuple[str, str], list[dict]] = {(kind, loop): [] for kind in kinds for loop in ("ours", "plain")}
    with tqdm(total=1 + settings.repeats * len(found), desc="full size", unit="run", disable=None) as bar:
        checkpoint.write(random_checkpoint(unet_widths, vae_widths), weights)
        bar.update()
        for kind in kinds:
            for repeat in range(
                settings.repeats
            ):  # in turn, and each first as often, so that a machine that slows down favours none
                for loop in ("ours", "plain") if repeat % 2 == 0 else ("plain", "ours"):
                    bar.set_postfix_str(f"{loop}, {kind}")
                    task = {
                        "loop": loop,
                        "path": str(weights),
                        "dtype": kind,
                        "device": str(device),
                        "resolution": resolution,
                    }
                    task |= {"steps": settings.steps, "result": str(folder / f"{loop}-{kind}.pt")}
                    found[kind, loop].append(_work(task, folder))
                    bar.update()
    weights.unlink()
    figures = {
        "resolution": resolution,
        "steps": settings.steps,
        "unet_widths": list(unet_widths),
        "vae_widths": list(vae_widths),
    }
    figures["memory"] = next(iter(found.values()))[0]["memory"]
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        ours, plain = (_summary(found[kind, loop]) for loop in ("ours", "plain"))
        ratios = {"ratio_seconds": ours["seconds"] / plain["seconds"], "ratio_peak": None}
        if ours["peak_mb"] and plain["peak_mb"]:
            ratios["ratio_peak"] = ours["peak_mb"] / plain["peak_mb"]
        figures[kind] = {"ours": ours, "plain": plain, **ratios}
        rows += [(f"plain diffusers loop, {kind}", *_cells(plain)), (f"ours, {kind}", *_cells(ours))]
        rows.append(
            (
                f"**ours / plain, {kind}**" + " (bound 1.00)" * (kind == "float32"),
                *(f"**{_number(value, 2)}**" for value in ratios.values()),
            )
        )
    result = {
        name: torch.load(folder / f"{'-'.join(name)}.pt", weights_only=True)
        for name in (("ours", kind) for kind in kinds)
    }
    plain = torch.load(folder / "plain-float32.pt", weights_only=True)
    figures["agreement_db"] = _decibels(result["ours", "float32"], plain)
    size = "SD 1.5 inpainting" if not settings.widths else f"widths {'/'.join(map(str, settings.widths))}"
    text = _table(
        (f"{size}, random weights, {resolution}x{resolution}, {settings.steps} steps", "seconds", "peak MB"), rows
    )
    text += (
        "\n\nEncoding, sampling and decoding; imports and loading the weights are not in the seconds. "
        f"Memory: {figures['memory']}.\n"
        f"Medians and highest peaks of {settings.repeats}, in turn. "
        f"The two loops agree in float32 to {figures['agreement_db']:.1f} dB."
    )
    if usual != "float32":
        figures["cost_db"] = _decibels(result["ours", usual], result["ours", "float32"])
        text += f" {usual} instead of float32: {figures['cost_db']:.1f} dB, on random weights."
    return figures, text


def _import(settings: Settings, device: torch.device, folder: Path) -> tuple[dict, str]:
    seconds, loaded = [], []
    for _ in range(settings.repeats):
        done = subprocess.run([sys.executable, "-c", _IMPORT], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"importing {PACKAGE} failed:\n{done.stderr}")
        first, *loaded = done.stdout.split()
        seconds.append(float(first))
    figures = {
        "seconds": statistics.median(seconds),
        "bound_seconds": IMPORT_SECONDS,
        "loaded": loaded,
        "runs": seconds,
    }
    rows: list[tuple[str, ...]] = [("median", f"{figures['seconds']:.3f}"), ("bound", f"{IMPORT_SECONDS:.3f}")]
    return figures, _table(
        (f"import {PACKAGE}", "seconds"), rows
    ) + f"\n\nPulls in {', '.join(loaded) or 'none'} of {', '.join(HEAVY)}."


def _host(settings: Settings, device: torch.device, folder: Path) -> tuple[dict, str]:
    from . import host as benchmark_host

    resolution, base = settings.resolution or 1024, folder / "comfyui"
    own = settings.comfyui.resolve() / ".venv/bin/python"
    python = str(own if own.is_file() else sys.executable)
    base.mkdir()
    graphs = benchmark_host.graphs(resolution, settings.steps)
    found: dict[str, list[dict]] = {"core": [], "ours": []}
    with tqdm(total=1 + settings.repeats * len(found), desc="ComfyUI", unit="run", disable=None) as bar:
        benchmark_host.prepare(base, resolution)
        bar.update()
        for repeat in range(settings.repeats):
            for name in ("core", "ours") if repeat % 2 == 0 else ("ours", "core"):
                bar.set_postfix_str(name)
                found[name].append(
                    benchmark_host.measure(settings.comfyui.resolve(), python, base, graphs[name], device.type)
                )
                bar.update()
    core, ours = (_summary(found[name]) for name in ("core", "ours"))
    ratios = {"ratio_seconds": ours["seconds"] / core["seconds"], "ratio_peak": None}
    if core["peak_mb"] and ours["peak_mb"]:
        ratios["ratio_peak"] = ours["peak_mb"] / core["peak_mb"]
    figures = {"resolution": resolution, "steps": settings.steps, "core": core, "ours": ours, **ratios}
    rows: list[tuple[str, ...]] = [
        ("UNETLoader, VAEEncode, KSampler, VAEDecode", *_cells(core)),
        ("our nodes", *_cells(ours)),
    ]
    rows.append(("**ours / core** (bounds 1.02, 1.00)", *(f"**{_number(value, 3)}**" for value in ratios.values())))
    text = _table(
        (
            f"in ComfyUI, SD 1.5 inpainting, random weights, {resolution}x{resolution}, {settings.steps} steps",
            "seconds",
            "peak MB",
        ),
        rows,
    )
    text += (
        "\n\nFrom queueing to the saved picture, loading included; the server's peak memory. "
        f"Medians and highest peaks of {settings.repeats}, in turn."
    )
    return figures, text


# Processes that are measured.


def _launch(command: list, folder: Path) -> dict:
    """Runs a command; its seconds and its peak memory in bytes (None where the system does not tell)."""
    report = folder / "launch.json"
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, str(report), *map(str, command)],
        env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{_words(command)} could not be started:\n{done.stderr}")
    found = json.loads(report.read_text())
    if found["code"]:
        _raise_if_killed(found["code"])
        if found["code"] != 2:  # not the input's fault
            raise RuntimeError(f"{_words(command)} failed:\n{done.stderr}")
        raise InputError(f"{_words(command)} failed: {last_line(done.stderr).removeprefix('error: ')}")
    return found


def _work(task: dict, folder: Path) -> dict:
    """Runs `loops.main` in a process of its own and returns what it found."""
    (folder / "task.json").write_text(json.dumps({**task, "report": str(folder / "work.json")}))
    (folder / "work.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", f"{__package__}.loops", str(folder / "task.json")]
    done = subprocess.run(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _raise_if_killed(done.returncode)
    if done.returncode:
        raise RuntimeError(f"The measured process failed on {task}:\n{done.stderr}")
    found = json.loads((folder / "work.json").read_text())
    if "error" in found:
        raise InputError(found["error"])
    return found


# Small things.


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


def _environment() -> dict[str, str]:
    """This one's, with this very package to be found first."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _summary(runs: list[dict]) -> dict:
    """Median seconds, highest peak in MB (None where it is not known), and the runs themselves."""
    peaks = [run["peak"] / 1e6 if run["peak"] else None for run in runs]
    known = [peak for peak in peaks if peak is not None]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_mb": max(known) if len(known) == len(peaks) else None,
        "runs_seconds": [run["seconds"] for run in runs],
        "runs_peak_mb": peaks,
    }


def _decibels(image: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR of two images [1, 3, H, W] in [0, 1], at most `EQUAL`."""
    return min(EQUAL, metrics.psnr(image * 255, other * 255).item())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(summary: dict) -> tuple[str, str]:
    return _number(summary["seconds"], 1), _number(summary["peak_mb"], 0)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _words(command: list) -> str:
    return f"`python {' '.join(map(str, command[1:]))}`"


def _raise_if_killed(code: int) -> None:
    if code < 0:
        raise InputError(
            f"a measured process was stopped by signal {-code}, most likely for want of memory; "
            "free some, or give a smaller --resolution"
        )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n\n")
    sys.stdout.flush()
