"""The prompts that most tests of the nodes share."""

import pictures
import torch
from harness import Graph, Node

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models import sampling
from diffharmony_models.pipeline import DiffHarmony

BUNDLED = "diffharmony-small (bundled)"
COLORS = "colors.safetensors"  # a file with a colour regressor, of the fixture `regressor`
LATENT = 1e-3  # worst difference of unscaled latents that are called equal
SEED = 11
STEPS = 5


def engine(path) -> DiffHarmony:
    return DiffHarmony.from_checkpoint(checkpoints.read(path), dtype=torch.float32)


def wires(host, name: str, composite: torch.Tensor, mask: torch.Tensor) -> tuple[Graph, dict]:
    """A graph with a checkpoint and the pictures, and the inputs that most of our nodes share."""
    graph = Graph()
    load = graph("LoadDiffHarmony", checkpoint=name, weight_dtype="fp32")
    picture = graph("TestLoad", file=host.give(value=pictures.image(composite)), kind="tensor")
    matte = graph("TestLoad", file=host.give(value=pictures.mask(mask)), kind="tensor")
    shared = {
        "model": load[0],
        "vae": load[1],
        "null_text": load[2],
        "refiner": load[3],
        "composite": picture[0],
        "mask": matte[0],
    }
    return graph, shared


def pick(shared: dict, *names: str) -> dict:
    return {name: shared[name] for name in names}


def harmonize(graph: Graph, shared: dict, resolution: int, **changes) -> list:
    settings = {
        "seed": SEED,
        "steps": STEPS,
        "sampler_name": "euler_ancestral",
        "scheduler": "normal",
        "shape": "keep proportions",
    }
    inputs = pick(shared, "model", "vae", "null_text", "composite", "mask")
    return graph("HarmonizeLatent", **inputs, resolution=resolution, **{**settings, **changes})[0]


def decode(graph: Graph, shared: dict, latent: list) -> list:
    return graph("VAEDecodeHigherRes", samples=latent, vae=shared["vae"], method="bilinear", width=0, height=0)[0]


def ksampler(graph: Graph, model: list, condition: Node, **changes) -> list:
    """Stage 1 as published, by the host's KSampler. condition: a DiffHarmonyConditioning."""
    wired = {"model": model, "positive": condition[0], "negative": condition[1], "latent_image": condition[2]}
    settings = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 1.0,
        "sampler_name": "euler_ancestral",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return graph("KSampler", **{**wired, **settings, **changes})[0]


def condition(graph: Graph, shared: dict, resolution: int) -> Node:
    inputs = pick(shared, "vae", "null_text", "composite", "mask")
    return graph("DiffHarmonyConditioning", **inputs, resolution=resolution, shape="keep proportions")


def colors(graph: Graph, composite: list, mask: list, **changes) -> Node:
    """HarmonizeColors with the regressor of the fixture `regressor`."""
    amounts = dict.fromkeys(("strength", "light", "color", "local"), 1.0)
    settings = {"weights": COLORS, **amounts, "feather": 0, "frames": "each alone", **changes}
    return graph("HarmonizeColors", composite=composite, mask=mask, **settings)


def hosts_noise(shape: tuple, seed: int = SEED, steps: int = STEPS) -> sampling.Noise:
    """What the host's samplers draw on the CPU: the start from the seed, the steps' noise from the next one."""
    initial = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    numbers = iter([initial, torch.zeros(shape), *(torch.randn(shape, generator=generator) for _ in range(steps))])
    return lambda shape: next(numbers)
