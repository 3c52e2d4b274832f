"""Pictures as people have them, and the chain of nodes that harmonizes them."""

import pictures
import torch
from graphs import BUNDLED
from harness import Graph
from PIL import Image

HEIGHT, WIDTH = 96, 128


def chain(graph: Graph, composite: list, mask: list, resolution: int = 64, **changes) -> list:
    """Loading, harmonizing in one step, decoding and the ending that keeps the composite's own pixels."""
    load = graph("LoadDiffHarmony", checkpoint=BUNDLED, weight_dtype="fp32")
    settings = {
        "seed": 0,
        "steps": 1,
        "sampler_name": "euler",
        "scheduler": "normal",
        "shape": "keep proportions",
        **changes,
    }
    wired = {"model": load[0], "vae": load[1], "null_text": load[2], "composite": composite, "mask": mask}
    latent = graph("HarmonizeLatent", **wired, resolution=resolution, **settings)
    harmonized = graph("VAEDecodeHigherRes", samples=latent[0], vae=load[1], method="bilinear", width=0, height=0)
    return graph(
        "TransferToFullResolution",
        harmonized=harmonized[0],
        composite=composite,
        mask=mask,
        radius=12,
        detail=1.0,
        feather=0,
    )[0]


def given(host, graph: Graph, value: torch.Tensor) -> list:
    """A tensor in the host's layout, as IMAGE or MASK."""
    return graph("TestLoad", file=host.give(value=value), kind="tensor")[0]


def loaded(host, graph: Graph, name: str, save) -> tuple[list, list]:
    """A picture file in the input folder through LoadImage: its IMAGE and its MASK."""
    path = host.input / name
    path.parent.mkdir(exist_ok=True)
    save(path)
    node = graph("LoadImage", image=name)
    return node[0], node[1]


def scene(height: int = HEIGHT, width: int = WIDTH) -> tuple[Image.Image, Image.Image]:
    """A composite as RGB and its mask as L, white where the foreground is."""
    composite, mask = pictures.composites(1, height, width)
    pixels = (composite[0].movedim(0, -1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels), Image.fromarray((mask[0, 0] * 255).to(torch.uint8).numpy())


def check(host, graph: Graph, composite: list, mask: list, result: list) -> torch.Tensor:
    """Runs it: the foreground has changed, and nothing else. Returns the mask."""
    image, matte, found = host.fetch(graph, composite, mask, result)
    assert found.shape == image.shape and found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    outside = matte == 0
    assert torch.equal(found[outside], image[outside])
    assert (found - image).abs()[matte > 0.5].max() > 2 / 255
    return matte
