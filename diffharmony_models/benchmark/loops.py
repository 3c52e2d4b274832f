"""What `benchmark` measures with full-size weights: our pipeline and a plain diffusers loop, each in its own process.

`python -m diffharmony_models.benchmark.loops TASK.json` is that process; `benchmark` starts it.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import InputError, one_line

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

UNET_WIDTHS, VAE_WIDTHS = (320, 640, 1280, 1280), (128, 256, 512, 512)  # SD 1.5
TOKENS, TEXT_WIDTH = 77, 768


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


def random_checkpoint(
    unet_widths: tuple[int, ...] = UNET_WIDTHS, vae_widths: tuple[int, ...] = VAE_WIDTHS
) -> "Checkpoint":
    """A Checkpoint of SD 1.5 inpainting's shape with random weights, float32, no refiner.

    Every layer keeps its input's variance.
    """
    from .. import checkpoint

    unet, vae = networks(unet_widths, vae_widths)
    generator = torch.Generator().manual_seed(0)
    for module in (unet, vae):
        module.to_empty(device="cpu").requires_grad_(False)
        for name, tensor in module.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.fill_(name.endswith("weight"))
    null_text = torch.randn(TOKENS, TEXT_WIDTH, generator=generator)
    return checkpoint.Checkpoint(
        "random", checkpoint.part_from(unet), checkpoint.part_from(vae), null_text=null_text, resolution=512
    )


def networks(unet_widths: tuple[int, ...], vae_widths: tuple[int, ...]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet2DConditionModel and AutoencoderKL of SD 1.5 inpainting, without memory.

    The widths are four multiples of 32 each.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            block_out_channels=tuple(unet_widths),
            attention_head_dim=8,
            cross_attention_dim=TEXT_WIDTH,
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(vae_widths), layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    return unet, vae


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


def reset_peak(device: torch.device) -> str:
    """Starts the measurement of memory anew where the system can, and says what `peak_bytes` will then tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "the GPU's, most that was allocated during the work, weights included"
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        return "the process's peak, loading included"
    return "the process's peak during the work, weights included"


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0][1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def last_line(text: str) -> str:
    """What a command said last, which is where it names its error."""
    return (text.strip().splitlines() or ["no word said"])[-1]


if __name__ == "__main__":
    main(sys.argv[1])
