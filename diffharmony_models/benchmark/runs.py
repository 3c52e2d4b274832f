"""The `benchmark` command: time and memory on this machine, as Markdown tables.

The demo command from start to file; full-size SD 1.5 inpainting weights (random ones) through our pipeline and through
a plain diffusers loop in the same run; importing the package; and, where a ComfyUI is given, our nodes beside its own
inpainting graph. Each figure is of a process of its own, started for it, so that neither memory nor warmth is handed
on. MB are 10⁶ bytes.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..cli.harmonize import dtype, find_device, steps
from ..errors import InputError
from ..evaluation import metrics
from ..files import images
from .loops import UNET_WIDTHS, VAE_WIDTHS, last_line, random_checkpoint

logger = logging.getLogger(__name__)

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark`."""
    parser.add_argument(
        "--only",
        choices=PARTS,
        help="one part: the demo command, full-size weights, the import, or ComfyUI "
        "(default: all; ComfyUI with --comfyui only)",
    )
    parser.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)"
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=3,
        help="runs behind each figure; times are medians (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    demo = parser.add_argument_group("the demo command")
    demo.add_argument(
        "--composite",
        metavar="FILE",
        type=Path,
        help="another picture than workflows/pictures/astronaut.jpg, with its --mask",
    )
    demo.add_argument("--mask", metavar="FILE", type=Path, help="its mask, given together with it")
    demo.add_argument("--checkpoint", metavar="C", type=Path, help="other weights than the bundled ones")
    full = parser.add_argument_group(
        "full-size weights", "Needs 4 GB of disk in the temporary folder (TMPDIR) and 6 GB of memory."
    )
    full.add_argument(
        "--resolution",
        metavar="R",
        type=int,
        help="side of the picture, a multiple of 64 (default: 512, in ComfyUI 1024)",
    )
    full.add_argument("--steps", metavar="N", type=steps, default=5, help="sampling steps (default: %(default)s)")
    full.add_argument(
        "--dtype", metavar="T", type=dtype, help="what is run beside float32 (default: what suits the device)"
    )
    host = parser.add_argument_group(
        "ComfyUI",
        "Full-size weights as nodes, beside the core's own graph, at 1024 unless --resolution says otherwise.",
    )
    host.add_argument("--comfyui", metavar="DIR", type=Path, help="where ComfyUI's main.py is")
    host.add_argument(
        "--comfyui-python", metavar="FILE", help="the Python that it runs with (default: its .venv's, else this one)"
    )
    full.add_argument(
        "--widths", type=int, nargs=4, metavar="W", help="of UNet and VAE, multiples of 32 (default: those of SD 1.5)"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, and writes each part's table to stdout as soon as it is there.

    Returns:
        0, whether bounds are met or not: the tables say it.

    Raises:
        ValueError: bad options; a measured command that failed, in its own words; too little memory.
        OSError: no room for the random weights or the figures.
    """
    _check(args)
    device = find_device(args.device)
    machine = _machine(device)
    figures = {"machine": machine}
    _say(", ".join(f"{key} {value}" for key, value in machine.items()))
    parts = {"demo": _demo, "full": _full, "import": _import, "host": _host}
    chosen = (
        [name for name in PARTS if name != "host" or args.comfyui is not None] if args.only is None else [args.only]
    )
    with tempfile.TemporaryDirectory(prefix="diffharmony-benchmark-") as folder:
        for name in chosen:
            figures[name], text = parts[name](args, device, Path(folder))
            _say(text)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        logger.info("figures written: %s", args.json)
    return 0


# The three parts: each returns its figures and its text.


def _demo(args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[dict, str]:
    from ..pipeline import default_dtype

    composite, mask = args.composite or EXAMPLES / "astronaut.jpg", args.mask or EXAMPLES / "astronaut_mask.png"
    for path in (composite, mask):
        if not path.is_file():
            raise InputError(
                f"{path} is not there (the examples come with the repository, not with the package); "
                "give --composite and --mask"
            )
    usual = _name(default_dtype(device))
    kinds: list[tuple[str, list[str]]] = [(usual, [])] * args.repeats + [("float32", ["--dtype", "float32"])] * (
        usual != "float32"
    )
    found: dict[str, list[dict]] = {}
    results: dict[str, Path] = {}
    for number, (kind, options) in enumerate(tqdm(kinds, desc="demo command", unit="run", disable=None)):
        results[kind] = folder / f"demo{number}.png"
        command = [sys.executable, "-m", __package__, "harmonize", composite, mask, results[kind], *options]
        command += [] if args.checkpoint is None else ["--checkpoint", args.checkpoint]
        command += [] if args.device == "auto" else ["--device", args.device]
        found.setdefault(kind, []).append(_launch(command, folder))
        if not results[kind].is_file():
            raise RuntimeError(f"{' '.join(map(str, command))} ended well but wrote no file")
    figures: dict[str, Any] = {
        "dtype": usual,
        "bound_seconds": DEMO_SECONDS,
        "bound_mb": DEMO_MB,
        **{kind: _summary(runs) for kind, runs in found.items()},
    }
    rows: list[tuple[str, ...]] = [
        (f"{kind}{', the default' if kind == usual else ''}", *_cells(figures[kind])) for kind in found
    ]
    rows.append(("bound, on two CPU cores", f"{DEMO_SECONDS:.1f}", f"{DEMO_MB}"))
    text = _table((f"demo command ({composite.name}), from start to file", "seconds", "peak MB"), rows)
    if usual != "float32":
        pictures = [images.read_image(results[kind].as_posix()).pixels for kind in (usual, "float32")]
        figures["cost_db"] = _decibels(*pictures)
        text += f"\n\nThe demo's picture in {usual} against the one in float32: {figures['cost_db']:.1f} dB."
    return figures, text


def _full(args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[dict, str]:
    from .. import checkpoint
    from ..pipeline import default_dtype

    weights, resolution = folder / "random.safetensors", args.resolution or 512
    unet_widths, vae_widths = (args.widths, args.widths) if args.widths else (UNET_WIDTHS, VAE_WIDTHS)
    usual = _name(args.dtype or default_dtype(device))
    kinds = ["float32"] + [usual] * (usual != "float32")
    found: dict[tuple[str, str], list[dict]] = {(kind, loop): [] for kind in kinds for loop in ("ours", "plain")}
    with tqdm(total=1 + args.repeats * len(found), desc="full size", unit="run", disable=None) as bar:
        checkpoint.write(random_checkpoint(unet_widths, vae_widths), weights)
        bar.update()
        for kind in kinds:
            for repeat in range(
                args.repeats
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
                    task |= {"steps": args.steps, "result": str(folder / f"{loop}-{kind}.pt")}
                    found[kind, loop].append(_work(task, folder))
                    bar.update()
    weights.unlink()
    figures = {
        "resolution": resolution,
        "steps": args.steps,
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
    size = "SD 1.5 inpainting" if not args.widths else f"widths {'/'.join(map(str, args.widths))}"
    text = _table(
        (f"{size}, random weights, {resolution}x{resolution}, {args.steps} steps", "seconds", "peak MB"), rows
    )
    text += (
        "\n\nEncoding, sampling and decoding; imports and loading the weights are not in the seconds. "
        f"Memory: {figures['memory']}.\n"
        f"Medians and highest peaks of {args.repeats}, in turn. "
        f"The two loops agree in float32 to {figures['agreement_db']:.1f} dB."
    )
    if usual != "float32":
        figures["cost_db"] = _decibels(result["ours", usual], result["ours", "float32"])
        text += f" {usual} instead of float32: {figures['cost_db']:.1f} dB, on random weights."
    return figures, text


def _import(args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[dict, str]:
    seconds, loaded = [], []
    for _ in range(args.repeats):
        done = subprocess.run([sys.executable, "-c", _IMPORT], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"importing {__package__} failed:\n{done.stderr}")
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
        (f"import {__package__}", "seconds"), rows
    ) + f"\n\nPulls in {', '.join(loaded) or 'none'} of {', '.join(HEAVY)}."


def _host(args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[dict, str]:
    from . import host as benchmark_host

    resolution, base = args.resolution or 1024, folder / "comfyui"
    own = args.comfyui.resolve() / ".venv/bin/python"
    python = args.comfyui_python or str(own if own.is_file() else sys.executable)
    base.mkdir()
    graphs = benchmark_host.graphs(resolution, args.steps)
    found: dict[str, list[dict]] = {"core": [], "ours": []}
    with tqdm(total=1 + args.repeats * len(found), desc="ComfyUI", unit="run", disable=None) as bar:
        benchmark_host.prepare(base, resolution)
        bar.update()
        for repeat in range(args.repeats):
            for name in ("core", "ours") if repeat % 2 == 0 else ("ours", "core"):
                bar.set_postfix_str(name)
                found[name].append(
                    benchmark_host.measure(args.comfyui.resolve(), python, base, graphs[name], device.type)
                )
                bar.update()
    core, ours = (_summary(found[name]) for name in ("core", "ours"))
    ratios = {"ratio_seconds": ours["seconds"] / core["seconds"], "ratio_peak": None}
    if core["peak_mb"] and ours["peak_mb"]:
        ratios["ratio_peak"] = ours["peak_mb"] / core["peak_mb"]
    figures = {"resolution": resolution, "steps": args.steps, "core": core, "ours": ours, **ratios}
    rows: list[tuple[str, ...]] = [
        ("UNETLoader, VAEEncode, KSampler, VAEDecode", *_cells(core)),
        ("our nodes", *_cells(ours)),
    ]
    rows.append(("**ours / core** (bounds 1.02, 1.00)", *(f"**{_number(value, 3)}**" for value in ratios.values())))
    text = _table(
        (
            f"in ComfyUI, SD 1.5 inpainting, random weights, {resolution}x{resolution}, {args.steps} steps",
            "seconds",
            "peak MB",
        ),
        rows,
    )
    text += (
        "\n\nFrom queueing to the saved picture, loading included; the server's peak memory. "
        f"Medians and highest peaks of {args.repeats}, in turn."
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


def _check(args: argparse.Namespace) -> None:
    if args.repeats < 1:
        raise InputError(f"--repeats {args.repeats} is too small; give 1 or more")
    if args.steps < 2:
        raise InputError(
            "--steps 1 cannot be compared: for one step the diffusers loop starts at timestep 0; give 2 or more"
        )
    if args.resolution is not None and (args.resolution < 64 or args.resolution % 64):
        raise InputError(f"--resolution {args.resolution} is no multiple of 64; give 512, for example")
    if args.only == "host" and args.comfyui is None:
        raise InputError("--only host needs --comfyui DIR, the folder with ComfyUI's main.py")
    if args.comfyui is not None and not (args.comfyui / "main.py").is_file():
        raise InputError(f"--comfyui {args.comfyui}: there is no main.py; give ComfyUI's own folder")
    if args.widths and any(width < 32 or width % 32 for width in args.widths):
        raise InputError(
            f"--widths {' '.join(map(str, args.widths))}: each must be a multiple of 32, for the normalisation's groups"
        )
    if (args.composite is None) != (args.mask is None):
        raise InputError("--composite and --mask go together; give both or neither")
    if args.json is not None and (args.json.is_dir() or not Path(os.path.realpath(args.json)).parent.is_dir()):
        raise InputError(f"--json {args.json}: give the name of a file in a folder that exists")


def _machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    packages = {name: version(name) for name in ("torch", "diffusers")}
    return {
        __package__: __version__,
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
