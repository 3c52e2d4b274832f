"""What `benchmark` measures with full-size weights: our pipeline and a plain diffusers loop, each in its own process.

`python -m diffharmony_models.benchmark.loops TASK.json` is that process; `full` starts it.
"""

import json
import sys
import time
from pathlib import Path

import torch

from ..errors import InputError, one_line
from .memory import peak_bytes, reset_peak
from .processes import last_line


def plain_loop(
    vae: torch.nn.Module,
    unet: torch.nn.Module,
    null_text: torch.Tensor,
    composite: torch.Tensor,
    mask: torch.Tensor,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The method as one writes it with diffusers alone, to compare with.

    vae, unet: AutoencoderKL and UNet2DConditionModel, of one device and dtype, as the tensors: null_text [1, tokens,
    width]; composite [1, 3, H, W] in [0, 1]; mask [1, 1, H, W], 0 or 1; sides multiples of 8. Draws from `generator` in
    the published order: start noise, posterior, one per step. Returns [1, 3, H, W] in [0, 1].
    """
    from diffusers import EulerAncestralDiscreteScheduler

    with torch.no_grad():
        scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        scheduler.set_timesteps(steps, device=composite.device)
        size = [side // 8 for side in composite.shape[-2:]]
        latents = torch.randn((1, 4, *size), generator=generator).to(composite) * scheduler.init_noise_sigma
        latent = vae.encode(composite * 2 - 1).latent_dist.sample(generator) * vae.config.scaling_factor
        small_mask = torch.nn.functional.interpolate(mask, size=size)
        for timestep in scheduler.timesteps:
            inputs = torch.cat([scheduler.scale_model_input(latents, timestep), small_mask, latent], dim=1)
            noise = unet(inputs, timestep, encoder_hidden_states=null_text).sample
            latents = scheduler.step(noise, timestep, latents, generator=generator).prev_sample
        image = vae.decode(latents / vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1)


def main(path: str) -> None:
    """What runs in the measured process: a task in a JSON file, answered in another."""
    task = json.loads(Path(path).read_text())
    try:
        found = measure(task)
    except InputError as error:
        found = {"error": one_line(error)}
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        found = {
            "error": f"the measured process needs more memory than there is ({last_line(str(error))}); "
            "give a smaller --resolution"
        }
    Path(task["report"]).write_text(json.dumps(found))


def measure(task: dict) -> dict:
    """Loads the weights, runs one loop once, and returns its seconds and peak memory.

    Both loops load and are fed alike.
    """
    from .. import checkpoint
    from ..pipeline import DiffHarmony
    from ..settings import Settings

    device, kind, side = torch.device(task["device"]), getattr(torch, task["dtype"]), task["resolution"]
    engine = DiffHarmony.from_checkpoint(checkpoint.read(task["path"]), device=device, dtype=kind)
    composite = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1

    def ours(steps: int) -> torch.Tensor:
        settings = Settings(resolution=side, steps=steps)
        latents = engine.harmonize_latents(composite, mask, settings)
        return engine.decode(latents)

    def plain(steps: int) -> torch.Tensor:
        assert engine.null_text is not None
        text, image, small = (tensor.to(device, kind) for tensor in (engine.null_text[None], composite, mask))
        return plain_loop(engine.vae, engine.unet, text, image, small, steps, torch.Generator().manual_seed(0))

    loop = {"ours": ours, "plain": plain}[task["loop"]]
    if device.type != "cpu":
        loop(1)  # a GPU's first call loads and chooses its kernels
    memory = reset_peak(device)
    start = time.perf_counter()
    image = loop(task["steps"]).float().cpu()  # waits for the device
    seconds = time.perf_counter() - start
    peak = peak_bytes(device)
    torch.save(image, task["result"])
    return {"seconds": seconds, "peak": peak, "memory": memory}


if __name__ == "__main__":
    main(sys.argv[1])
