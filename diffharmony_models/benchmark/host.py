"""Our nodes beside the core's own inpainting graph, each in a ComfyUI of its own, with full-size random weights.

ComfyUI is started as a user starts it. Its models, input and output lie in a temporary folder, so the installation
stays as it is.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from .. import checkpoint
from ..errors import InputError
from ..files import images
from .memory import peak_memory
from .random_weights import random_checkpoint
from .server import Failed, Server
from .tables import ratio_row, ratios, row, summary, table

_SAMPLER = {"seed": 0, "steps": 5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
_NULL_TEXT = {"class_type": "LoadDiffHarmony", "inputs": {"checkpoint": "null.safetensors", "weight_dtype": "default"}}


def prepare(folder: Path, side: int) -> None:
    """Puts random weights of SD 1.5's size, and a composite and mask of `side` pixels, into a server's base folder."""
    weights = random_checkpoint()
    for kind, place in (("unet", "diffusion_models"), ("vae", "vae")):
        part = getattr(weights, kind)
        file = folder / "models" / place / f"{kind}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in part.state.items()}, file)
        own = folder / "models" / "diffharmony" / "random" / kind
        own.mkdir(parents=True)
        (own / "config.json").write_text(json.dumps(part.config))
        (own / "diffusion_pytorch_model.safetensors").symlink_to(file)
    null_text = checkpoint.Checkpoint("null", null_text=weights.null_text)
    checkpoint.write(null_text, folder / "models" / "diffharmony" / "null.safetensors")

    composite = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 3, side, side)
    mask[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    images.write_image(folder / "input" / "composite.png", composite)
    images.write_image(folder / "input" / "mask.png", mask)


def graphs(side: int, steps: int) -> dict[str, dict]:
    """Two graphs in ComfyUI's API format: "core" is UNETLoader, VAEEncode, KSampler, VAEDecode; "ours" our nodes."""
    sampler = {**_SAMPLER, "steps": steps}
    shared = {
        "text": _NULL_TEXT,
        "image": {"class_type": "LoadImage", "inputs": {"image": "composite.png"}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "benchmark"}},
    }
    core = {
        "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": "unet.safetensors", "weight_dtype": "default"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "vae.safetensors"}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["vae", 0]}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                **sampler, "cfg": 1.0, "denoise": 1.0, "model": ["unet", 0], "positive": ["text", 2],
                "negative": ["text", 2], "latent_image": ["encode", 0],
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
    }  # fmt: skip
    ours = {
        "load": {"class_type": "LoadDiffHarmony", "inputs": {"checkpoint": "random", "weight_dtype": "default"}},
        "mask": {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "red"}},
        "sample": {
            "class_type": "HarmonizeLatent",
            "inputs": {
                **sampler, "resolution": side, "shape": "keep proportions", "model": ["load", 0], "vae": ["load", 1],
                "null_text": ["text", 2], "composite": ["image", 0], "mask": ["mask", 0],
            },
        },
        "decode": {
            "class_type": "VAEDecodeHigherRes",
            "inputs": {
                "samples": ["sample", 0], "vae": ["load", 1], "composite": ["image", 0], "method": "bilinear",
                "width": 0, "height": 0,
            },
        },
    }  # fmt: skip
    return {"core": {**shared, **core}, "ours": {**shared, **ours}}


def host(comfyui: Path, device: torch.device, side: int, steps: int, repeats: int, folder: Path) -> tuple[dict, str]:
    """Figures and table of both graphs. comfyui: the folder with its main.py, run by its .venv's Python, else this one;
    side: of the picture, in pixels, a multiple of 64."""
    own = comfyui.resolve() / ".venv/bin/python"
    options = ["--cpu"] if device.type == "cpu" else []
    server = Server(comfyui.resolve(), own if own.is_file() else Path(sys.executable), folder / "comfyui", *options)
    prompts = graphs(side, steps)
    found: dict[str, list[dict]] = {"core": [], "ours": []}
    with tqdm(total=1 + repeats * len(found), desc="ComfyUI", unit="run", disable=None) as bar:
        prepare(server.base, side)
        bar.update()
        for repeat in range(repeats):
            for name in ("core", "ours") if repeat % 2 == 0 else ("ours", "core"):
                bar.set_postfix_str(name)
                found[name].append(measure(server, prompts[name]))
                bar.update()
    core, ours = summary(found["core"]), summary(found["ours"])
    rows: list[tuple[str, ...]] = [
        row("UNETLoader, VAEEncode, KSampler, VAEDecode", core),
        row("our nodes", ours),
        ratio_row("ours / core", " (bounds 1.02, 1.00)", ratios(ours, core), 3),
    ]
    size = f"in ComfyUI, SD 1.5 inpainting, random weights, {side}x{side}, {steps} steps"
    text = table((size, "seconds", "peak MB"), rows)
    text += (
        "\n\nFrom queueing to the saved picture, loading included; the server's peak memory. "
        f"Medians and highest peaks of {repeats}, in turn."
    )
    return {"resolution": side, "steps": steps, "core": core, "ours": ours, **ratios(ours, core)}, text


def measure(server: Server, prompt: dict) -> dict:
    """Starts the server, runs one graph, stops it. Seconds from the graph's start to its end, loading included, and the
    server's peak memory in bytes (None where the system does not tell). InputError, in ComfyUI's words, where the graph
    fails."""
    server.start()
    try:
        messages = dict(server.wait(server.queue(prompt))["status"]["messages"])
        milliseconds = messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]
        return {"seconds": milliseconds / 1000, "peak": peak_memory(server.pid)}
    except Failed as error:
        raise InputError(f"ComfyUI failed in {error.node}: {error}") from error
    finally:
        server.stop()
