"""Full-size random weights through our pipeline and through a plain diffusers loop, in turn in the same run."""

import json
from pathlib import Path

import torch
from tqdm import tqdm

from .. import checkpoint
from ..errors import InputError
from .processes import python, raise_if_killed
from .random_weights import UNET_WIDTHS, VAE_WIDTHS, random_checkpoint
from .tables import decibels, ratio_row, ratios, row, summary, table


def full(
    device: torch.device,
    dtype: torch.dtype,
    side: int,
    steps: int,
    repeats: int,
    widths: tuple[int, ...] | None,
    folder: Path,
) -> tuple[dict, str]:
    """Figures and table of both loops in float32 and, where it is another, in `dtype`.

    side: of the picture, in pixels, a multiple of 64. widths: of UNet and VAE, four multiples of 32; None: SD 1.5's.
    """
    unet_widths, vae_widths = (widths, widths) if widths else (UNET_WIDTHS, VAE_WIDTHS)
    kinds = list(dict.fromkeys(["float32", str(dtype).removeprefix("torch.")]))
    weights = folder / "random.safetensors"
    task = {"path": str(weights), "device": str(device), "resolution": side, "steps": steps}
    found: dict[tuple[str, str], list[dict]] = {(kind, loop): [] for kind in kinds for loop in ("ours", "plain")}
    results = {(kind, loop): folder / f"{loop}-{kind}.pt" for kind, loop in found}
    with tqdm(total=1 + repeats * len(found), desc="full size", unit="run", disable=None) as bar:
        checkpoint.write(random_checkpoint(unet_widths, vae_widths), weights)
        bar.update()
        for kind in kinds:
            for repeat in range(repeats):
                # In turn, and each first as often, so that a machine that slows down favours none.
                for loop in ("ours", "plain") if repeat % 2 == 0 else ("plain", "ours"):
                    bar.set_postfix_str(f"{loop}, {kind}")
                    result = str(results[kind, loop])
                    found[kind, loop].append(_work({**task, "loop": loop, "dtype": kind, "result": result}, folder))
                    bar.update()
    weights.unlink()

    figures = {"resolution": side, "steps": steps, "unet_widths": list(unet_widths), "vae_widths": list(vae_widths)}
    figures["memory"] = found["float32", "ours"][0]["memory"]
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        ours, plain = summary(found[kind, "ours"]), summary(found[kind, "plain"])
        figures[kind] = {"ours": ours, "plain": plain, **ratios(ours, plain)}
        bounds = " (bound 1.00)" if kind == "float32" else ""
        rows += [row(f"plain diffusers loop, {kind}", plain), row(f"ours, {kind}", ours)]
        rows.append(ratio_row(f"ours / plain, {kind}", bounds, ratios(ours, plain), 2))
    pictures = {key: torch.load(path, weights_only=True) for key, path in results.items()}
    figures["agreement_db"] = decibels(pictures["float32", "ours"], pictures["float32", "plain"])
    size = f"widths {'/'.join(map(str, widths))}" if widths else "SD 1.5 inpainting"
    text = table((f"{size}, random weights, {side}x{side}, {steps} steps", "seconds", "peak MB"), rows)
    text += (
        "\n\nEncoding, sampling and decoding; imports and loading the weights are not in the seconds. "
        f"Memory: {figures['memory']}.\n"
        f"Medians and highest peaks of {repeats}, in turn. "
        f"The two loops agree in float32 to {figures['agreement_db']:.1f} dB."
    )
    if len(kinds) > 1:
        figures["cost_db"] = decibels(pictures[kinds[1], "ours"], pictures["float32", "ours"])
        text += f" {kinds[1]} instead of float32: {figures['cost_db']:.1f} dB, on random weights."
    return figures, text


def _work(task: dict, folder: Path) -> dict:
    """Runs `loops.main` in a process of its own and returns what it found."""
    question, report = folder / "task.json", folder / "work.json"
    question.write_text(json.dumps({**task, "report": str(report)}))
    report.unlink(missing_ok=True)
    done = python("-m", f"{__package__}.loops", question)
    raise_if_killed(done.returncode)
    if done.returncode:
        raise RuntimeError(f"The measured process failed on {task}:\n{done.stderr}")
    found = json.loads(report.read_text())
    if "error" in found:
        raise InputError(found["error"])
    return found
