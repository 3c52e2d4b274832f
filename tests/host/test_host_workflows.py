"""Every workflow that ships is run as it stands, with small pictures and substitutes for the weights that users download,
and held against the engine with the same noise."""

import json

import pictures
import pytest
import torch
import weights
from graphs import engine, hosts_noise
from harness import ROOT, Graph
from safetensors.torch import save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part
from diffharmony_models.pipeline import DiffHarmony, Noise

FILES = sorted((ROOT / "workflows").glob("*.json"))
BOUND = 45  # dB, of 8 bit pictures; rounding alone leaves 59
SD_VAE = "vae-ft-mse-840000-ema-pruned.safetensors"


def workflow(name: str) -> Graph:
    return Graph(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))


def only(graph: Graph, class_type: str, title: str | None = None) -> str:
    """The id of the one node of a class (and with these words in its title)."""
    found = [key for key, node in graph.prompt.items() if node["class_type"] == class_type]
    found = [key for key in found if title is None or title in graph.prompt[key]["_meta"]["title"]]
    assert len(found) == 1, f"{len(found)} nodes {class_type} {title or ''}"
    return found[0]


def change(graph: Graph, class_type: str, title: str | None = None, **inputs) -> None:
    node = graph.prompt[only(graph, class_type, title)]
    assert set(inputs) <= set(node["inputs"])
    node["inputs"].update(inputs)


def wire(graph: Graph, class_type: str, name: str) -> list:
    """What goes into an input of the one node of a class."""
    return graph.prompt[only(graph, class_type)]["inputs"][name]


def lay(host, graph: Graph, height: int = 96, width: int = 128, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts a composite and its mask where the workflow looks for them."""
    composite, mask = pictures.composites(1, height, width, seed)
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage")]["inputs"]["image"], composite[0])
    pictures.write(host.input / graph.prompt[only(graph, "LoadImageMask")]["inputs"]["image"], mask[0])
    return composite, mask


def result(host, graph: Graph) -> torch.Tensor:
    """The picture that the workflow saves."""
    saved = host.run(graph).outputs[only(graph, "SaveImage")]["images"]
    assert len(saved) == 1
    return pictures.read(host.output / saved[0]["subfolder"] / saved[0]["filename"])


def compare(found: torch.Tensor, expected: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor) -> None:
    assert pictures.psnr(found, expected) >= BOUND
    outside = (mask == 0).expand_as(composite)
    assert (found[outside] - composite[outside]).abs().max() <= 1 / 255
    assert pictures.psnr(found[~outside], composite[~outside]) < BOUND, "nothing was harmonized"


@pytest.fixture(scope="session")
def sd_vae(host) -> DiffHarmony:
    """A VAE of SD 1.5's shape where the workflows look for one; as an engine without the other parts."""
    part = weights.vae((128, 256, 512, 512), layers=2)
    state = {key: value.half() for key, value in part.state.items()}
    (host.models / "vae").mkdir(exist_ok=True)
    save_file(state, host.models / "vae" / SD_VAE)
    part = Part(part.config, {key: value.float() for key, value in state.items()})
    return DiffHarmony(vae=checkpoints.build_vae(part).requires_grad_(False))


@pytest.fixture(scope="session")
def base(published, sd_vae) -> DiffHarmony:
    """The published checkpoint's engine with SD 1.5's VAE in place of its own."""
    ours = engine(published / "base")
    ours.vae = sd_vae.vae
    return ours


@pytest.fixture(scope="session")
def sd15(host, sd_vae) -> None:
    """Checkpoints that the host's loader takes for SD 1.5 and its inpainting model."""
    (host.models / "checkpoints").mkdir(exist_ok=True)
    for name, channels in (("v1-5-pruned-emaonly", 4), ("sd-v1-5-inpainting", 9)):
        graph = Graph()
        file = str(host.models / "checkpoints" / f"{name}.safetensors")
        graph("TestCheckpoint", file=file, channels=channels, vae=str(host.models / "vae" / SD_VAE))
        host.run(graph)


def test_harmonize_bundled(host, bundled):
    graph = workflow("harmonize_bundled")
    composite, mask = lay(host, graph)
    change(graph, "HarmonizeLatent", resolution=128, seed=3)
    expected = bundled(composite, mask, resolution=128, seeds=3, harmony_vae=False).refined
    compare(result(host, graph), expected, composite, mask)


def test_harmonize_published(host, base):
    graph = workflow("harmonize_published")
    composite, mask = lay(host, graph)
    change(graph, "HarmonizeLatent", resolution=128, seed=3)
    expected = base(composite, mask, resolution=128, seeds=3, ending="paper").refined
    compare(result(host, graph), expected, composite, mask)


def test_stage1_ksampler(host, bundled):
    graph = workflow("stage1_ksampler")
    composite, mask = lay(host, graph)
    change(graph, "DiffHarmonyConditioning", resolution=128)
    change(graph, "KSampler", seed=3)
    height, width = 128, 128
    latents = bundled.harmonize_latents(composite, mask, resolution=128, noise=hosts_noise((1, 4, height // 8, width // 8), 3))
    expected = bundled.finish(bundled.decode(latents), composite, mask)
    compare(result(host, graph), expected, composite, mask)


def test_generate_paste_harmonize(host, bundled, sd15):
    graph = workflow("generate_paste_harmonize")
    thing = torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(1))
    thing[3] = 0
    thing[3, 8:40, 6:34] = 1
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage")]["inputs"]["image"], thing)
    place = {"x": 40, "y": 24}
    change(graph, "EmptyLatentImage", width=128, height=96)
    change(graph, "SolidMask", width=128, height=96)
    change(graph, "ImageCompositeMasked", **place)
    change(graph, "MaskComposite", **place)
    change(graph, "KSampler", steps=1)
    change(graph, "HarmonizeLatent", resolution=128, seed=3)
    composite, mask = host.fetch(graph, wire(graph, "HarmonizeLatent", "composite"), wire(graph, "HarmonizeLatent", "mask"))
    composite, mask = composite.movedim(-1, 1), mask[:, None]
    assert torch.equal(mask[0, 0, 24:72, 40:80], (thing[3] * 255).round() / 255)
    assert mask.sum() == 32 * 28
    inside = (mask > 0).expand_as(composite)
    assert (composite[inside] - thing[:3, 8:40, 6:34].flatten()).abs().max() <= 1 / 255
    expected = bundled(composite, mask, resolution=128, seeds=3, harmony_vae=False).refined
    compare(result(host, graph), expected, composite, mask)


def test_inpaint_harmonize(host, base, sd15):
    graph = workflow("inpaint_harmonize")
    photo, mask = pictures.composites(1, 120, 150)
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage", "Photo")]["inputs"]["image"], photo[0])
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage", "Mask")]["inputs"]["image"], mask[0])
    for title in ("To the model's size", "Mask as the photo"):
        change(graph, "ImageScale", title, width=128, height=128)
    change(graph, "KSampler", steps=1)
    change(graph, "HarmonizeLatent", seed=3)
    names = ("composite", "mask", "latent")
    composite, mask, latent = host.fetch(graph, *(wire(graph, "HarmonizeLatent", name) for name in names))
    composite, mask = composite.movedim(-1, 1), mask[:, None]
    assert composite.shape == (1, 3, 128, 128) and latent.shape == (1, 4, 16, 16)
    # The latent as it is: the draw from the posterior that ends up there.
    scale = base.vae.config.scaling_factor
    mean = base.encode(composite)
    std = base.encode(composite, noise=torch.ones_like(mean)) - mean
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(1, 4, 16, 16, generator=generator) for _ in range(7)]
    noise = Noise(drawn[0], (latent * scale - mean) / std, torch.stack(drawn[2:]))
    latents = base.harmonize_latents(composite, mask, resolution=128, noise=noise)
    expected = base.finish(base.decode(latents), composite, mask)
    compare(result(host, graph), expected, composite, mask)


def test_every_workflow_is_tested():
    assert FILES
    assert not [path.name for path in FILES if f"test_{path.stem}" not in globals()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_host_knows_every_node_and_setting(host, path):
    """Names, numbers and choices as the host offers them; only files are not looked for."""
    for node in json.loads(path.read_text(encoding="utf-8")).values():
        info = host.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]
        known = {**info["required"], **info.get("optional", {})}
        assert set(info["required"]) <= set(node["inputs"]) <= set(known)
        assert node["_meta"]["title"]
