"""What `benchmark --comfyui` measures: our nodes beside the core's own inpainting graph, each in its own server.

ComfyUI is started as a user starts it and spoken to over HTTP; nothing of it is imported. Its models, input and output
lie in a temporary folder, so the installation stays as it is.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import save_file

from .. import checkpoint
from ..errors import InputError
from ..files import images
from .loops import last_line, random_checkpoint

START_SECONDS = 600  # for a server to answer
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # this machine's own, whatever proxy is set
_SAMPLER = {"seed": 0, "steps": 5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
_NULL_TEXT = {"class_type": "LoadDiffHarmony", "inputs": {"checkpoint": "null.safetensors", "weight_dtype": "default"}}


def prepare(folder: Path, side: int) -> None:
    """Lays out a base folder for ComfyUI.

    It holds random weights of SD 1.5's size, a composite and a mask of `side` pixels, and our nodes.
    """
    weights = random_checkpoint()
    for kind, place in (("unet", "diffusion_models"), ("vae", "vae")):
        part = getattr(weights, kind)
        file = folder / "models" / place / f"{kind}.safetensors"
        file.parent.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in part.state.items()}, file)
        own = folder / "models" / "diffharmony" / "random" / kind
        own.mkdir(parents=True)
        (own / "config.json").write_text(json.dumps(part.config))
        (own / "diffusion_pytorch_model.safetensors").symlink_to(file)
    null_text = checkpoint.Checkpoint("null", null_text=weights.null_text)
    checkpoint.write(null_text, folder / "models" / "diffharmony" / "null.safetensors")

    for name in ("input", "output", "temp", "user", "custom_nodes"):
        (folder / name).mkdir()
    (folder / "custom_nodes" / "diffharmony").symlink_to(Path(__file__).resolve().parents[2], target_is_directory=True)
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


def measure(comfyui: Path, python: str, folder: Path, graph: dict, device: str) -> dict:
    """Starts a server, runs one graph, stops the server. Seconds from the graph's start to its end, loading included,
    and the server's peak memory in bytes (None where the system does not tell). ValueError, in the server's words,
    where it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        python,
        "main.py",
        "--port",
        str(port),
        "--base-directory",
        str(folder),
        "--disable-auto-launch",
        "--disable-api-nodes",
    ]
    command += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    command += ["--cpu"] if device == "cpu" else []
    with open(folder / "server.log", "w+") as log:
        server = subprocess.Popen(
            command,
            cwd=comfyui,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/system_stats", server, folder / "server.log")
            prompt = _ask(f"{address}/prompt", {"prompt": graph})["prompt_id"]
            seconds = _run(address, prompt, server, folder / "server.log")
            return {"seconds": seconds, "peak": peak_memory(server.pid)}
        finally:
            server.terminate()
            server.wait()


def _run(address: str, prompt: str, server: subprocess.Popen, log: Path) -> float:
    """Waits for a prompt's end; its seconds."""
    while True:
        time.sleep(1)
        _alive(server, log)
        found = _ask(f"{address}/history/{prompt}").get(prompt)
        if found is None:
            continue
        messages = dict(found["status"]["messages"])
        if "execution_success" not in messages:
            error = messages.get("execution_error", {})
            raise InputError(
                f"ComfyUI failed in {error.get('node_type', 'a node')}: "
                f"{error.get('exception_message', 'it was interrupted')}"
            )
        return (messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]) / 1000


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        _alive(server, log)
        try:
            _OPEN(address, timeout=10).close()
            return
        except OSError:  # URLError is one
            time.sleep(1)
    raise InputError(
        f"ComfyUI did not answer within {START_SECONDS} seconds: {last_line(log.read_text(errors='replace'))}"
    )


def _alive(server: subprocess.Popen, log: Path) -> None:
    if server.poll() is not None:
        raise InputError(f"ComfyUI ended by itself ({server.returncode}): {last_line(log.read_text(errors='replace'))}")


def _ask(address: str, content: dict | None = None) -> dict:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with _OPEN(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise InputError(f"ComfyUI refused the graph: {error.read().decode(errors='replace')[:500]}") from error


def peak_memory(pid: int) -> int | None:
    """Peak memory of a running process in bytes; None where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return None
    lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None
