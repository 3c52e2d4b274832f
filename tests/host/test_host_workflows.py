"""Every workflow that ships is run as it stands, with small pictures and substitutes for the weights that users
download, and held against the engine with the same noise."""

import json

import pictures
import pytest
import torch
import ui_format
from graphs import hosts_noise
from harness import ROOT, Graph

from diffharmony_models import recolor, transfer
from diffharmony_models.settings import Settings

FILES = sorted((ROOT / "workflows").glob("*.json"))
OURS = {"HarmonizeColors", "HarmonizeLatent", "RefineResidual", "TransferToFullResolution", "VAEDecodeHigherRes"}
BOUND = 45  # dB, of 8 bit pictures; rounding alone leaves 59


# What is in a video file, by the host's own library for them.
DESCRIBE = """
import av, json, sys
with av.open(sys.argv[1]) as file:
    video = file.streams.video[0]
    said = {"width": video.width, "height": video.height, "rate": int(video.average_rate)}
    print(json.dumps({**said, "frames": len(list(file.decode(video)))}))
"""


def read(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def workflow(host, name: str) -> Graph:
    """The workflow as the page would queue it."""
    return Graph(ui_format.prompt(read(name), host))


def knows(host, name: str) -> bool:
    """Whether the host has every node of a workflow: some are newer than the oldest host that the pack runs in."""
    known = host.get("/object_info")
    return all(node["type"] in known for node in read(name)["nodes"] if node["type"] not in ui_format.NOTES)


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
    """Puts a composite where the workflow looks for it, and its mask: in a file of its own, or, where the workflow has
    none, as ComfyUI's mask editor does, transparent in the foreground.
    """
    composite, mask = pictures.composites(1, height, width, seed)
    loaders = [node for node in graph.prompt.values() if node["class_type"] in ("LoadImage", "LoadImageMask")]
    files = {node["class_type"]: node["inputs"]["image"] for node in loaders}
    if "LoadImageMask" in files:
        pictures.write(host.input / files["LoadImageMask"], mask[0])
        pictures.write(host.input / files["LoadImage"], composite[0])
    else:
        pictures.write(host.input / files["LoadImage"], torch.cat([composite[0], 1 - mask[0]]))
    return composite, mask


def shown(host, outputs: dict, node: str) -> torch.Tensor:
    """The one picture that an output node saved or shows."""
    (told,) = outputs[node]["images"]
    folder = host.output if told["type"] == "output" else host.base / "temp"
    return pictures.read(folder / told["subfolder"] / told["filename"])


def result(host, graph: Graph) -> torch.Tensor:
    """The picture that the workflow saves."""
    return shown(host, host.run(graph).outputs, only(graph, "SaveImage"))


def compare(found: torch.Tensor, expected: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor) -> None:
    assert pictures.psnr(found, expected) >= BOUND
    outside = (mask == 0).expand_as(composite)
    assert (found[outside] - composite[outside]).abs().max() <= 1 / 255
    assert pictures.psnr(found[~outside], composite[~outside]) < BOUND, "nothing was harmonized"


def test_quick_start(host, bundled):
    """The colours alone, and the diffusion model after them as on the command line: the transfer goes to the recoloured
    picture."""
    graph = workflow(host, "quick_start")
    composite, mask = lay(host, graph)
    change(graph, "HarmonizeLatent", resolution=128, seed=3)
    recolored = [only(graph, "HarmonizeColors"), 0]
    assert all(wire(graph, name, "composite") == recolored for name in ("HarmonizeLatent", "TransferToFullResolution"))
    outputs = host.run(graph).outputs
    colors = bundled(composite, mask, Settings(method="colors")).refined
    compare(shown(host, outputs, only(graph, "SaveImage")), colors, composite, mask)
    found = shown(host, outputs, only(graph, "PreviewImage"))
    settings = Settings(method="both", resolution=128, seed=3)
    compare(found, bundled(composite, mask, settings).refined, composite, mask)
    assert pictures.psnr(found, colors) < BOUND, "the diffusion model has changed nothing"


def test_published_weights(host, base):
    graph = workflow(host, "published_weights")
    composite, mask = lay(host, graph)
    assert graph.prompt[only(graph, "HarmonizeLatent")]["inputs"]["resolution"] == 1024
    change(graph, "HarmonizeLatent", resolution=128, seed=3)
    change(graph, "LoadDiffHarmony", checkpoint="base")
    expected = base(composite, mask, Settings(resolution=128, seed=3, ending="paper")).refined
    compare(result(host, graph), expected, composite, mask)


def test_stage1_ksampler(host, bundled):
    graph = workflow(host, "stage1_ksampler")
    composite, mask = lay(host, graph)
    change(graph, "DiffHarmonyConditioning", resolution=128)
    change(graph, "KSampler", seed=3)
    assert graph.prompt[only(graph, "KSampler")]["inputs"]["steps"] == bundled.steps
    noise = hosts_noise((1, 4, 16, 16), 3, bundled.steps)
    colors = bundled(composite, mask, Settings(method="colors")).refined
    latents = bundled.harmonize_latents(colors, mask, Settings(resolution=128), noise=noise)
    expected = bundled.finish(bundled.decode(latents), colors, mask)
    compare(result(host, graph), expected, composite, mask)


def test_generate_paste_harmonize(host, bundled, sd15):
    graph = workflow(host, "generate_paste_harmonize")
    thing = torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(1))
    thing[3] = 0
    thing[3, 8:40, 6:34] = 1
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage")]["inputs"]["image"], thing)
    for title, value in {"Width": 128, "Height": 96, "x:": 40, "y:": 24}.items():
        change(graph, "PrimitiveInt", title, value=value)
    change(graph, "KSampler", steps=1)
    names = ("composite", "mask")
    composite, mask = host.fetch(graph, *(wire(graph, "HarmonizeColors", name) for name in names))
    composite, mask = composite.movedim(-1, 1), mask[:, None]
    assert torch.equal(mask[0, 0, 24:72, 40:80], (thing[3] * 255).round() / 255)
    assert mask.sum() == 32 * 28
    inside = (mask > 0).expand_as(composite)
    assert (composite[inside] - thing[:3, 8:40, 6:34].flatten()).abs().max() <= 1 / 255
    compare(result(host, graph), bundled(composite, mask, Settings(method="colors")).refined, composite, mask)


def test_inpaint_harmonize(host, base, sd15):
    graph = workflow(host, "inpaint_harmonize")
    _, hole = lay(host, graph, 160, 150)
    change(graph, "ImageScale", width=128, height=128)
    change(graph, "KSampler", steps=1)
    change(graph, "LoadDiffHarmony", checkpoint="base")
    change(graph, "HarmonizeLatent", seed=3)
    names = ("composite", "mask", "latent")
    composite, mask, latent = host.fetch(graph, *(wire(graph, "HarmonizeLatent", name) for name in names))
    composite, mask = composite.movedim(-1, 1), mask[:, None]
    assert composite.shape == (1, 3, 128, 128) and latent.shape == (1, 4, 16, 16)
    middle = (slice(None), slice(None), slice(5, 155))  # the square that the photo is cropped to
    assert (mask - torch.nn.functional.interpolate(hole[middle], (128, 128), mode="area")).abs().max() < 1e-6
    # The latent as it is: the draw from the posterior that ends up there.
    scale = base.vae.config.scaling_factor
    mean = base.encode(composite)
    std = base.encode(composite, noise=torch.ones_like(mean)) - mean
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(1, 4, 16, 16, generator=generator) for _ in range(7)]
    numbers = iter([drawn[0], (latent * scale - mean) / std, *drawn[2:]])
    latents = base.harmonize_latents(composite, mask, Settings(resolution=128), noise=lambda shape: next(numbers))
    expected = base.finish(base.decode(latents), composite, mask)
    compare(result(host, graph), expected, composite, mask)


def test_video_frames(host, bundled):
    """The frames are the clip's, as many and as fast; the mask is the mask clip's; the first frame is compared."""
    graph = workflow(host, "video_frames")
    for title in ("Clip", "Mask"):
        name = graph.prompt[only(graph, "LoadVideo", title)]["inputs"]["file"]
        (host.input / name).write_bytes((ROOT / "workflows/pictures" / name).read_bytes())
    wires = [wire(graph, "HarmonizeColors", name) for name in ("composite", "mask")]
    composite, mask, found = host.fetch(graph, *wires, wire(graph, "CreateVideo", "images"))
    composite, mask, found = composite.movedim(-1, 1), mask[:, None], found.movedim(-1, 1)
    assert len(composite) == len(mask) == len(found) == 16
    assert (
        0.1 < mask.mean() < 0.5 and ((mask == 0) | (mask > 0.99)).float().mean() > 0.9
    )  # newer hosts read white as 254
    mask = torch.where(mask < 1.5 / 255, 0, mask)  # the nodes take one level of 8 bits for nothing
    expected, _ = recolor.harmonize(bundled.color_regressor, composite, mask, frames="smoothed")
    compare(found, expected, composite, mask)
    assert (found - expected).abs().max() <= 1e-5
    outputs = host.run(graph).outputs
    saved = outputs[only(graph, "SaveVideo")]["images"][0]
    described = json.loads(host.script(DESCRIBE, host.output / saved["subfolder"] / saved["filename"]))
    assert described == {"frames": 16, "width": 384, "height": 256, "rate": 12}


def test_relit_to_full_size(host):
    """The relit picture's colours on the original's own pixels, and nothing changed outside the mask."""
    graph = workflow(host, "relit_to_full_size")
    composite, mask = pictures.composites(1, 96, 128)
    relit = (composite * torch.tensor([1.2, 1.0, 0.7])[:, None, None]).clamp(0, 1)
    relit = torch.nn.functional.interpolate(relit, (48, 64), mode="area")
    for title, picture in {"original": composite, "relit": relit}.items():
        name = graph.prompt[only(graph, "LoadImage", title)]["inputs"]["image"]
        pictures.write(host.input / name, picture[0])
    pictures.write(host.input / graph.prompt[only(graph, "LoadImageMask")]["inputs"]["image"], mask[0])
    relit = (relit * 255).round() / 255
    compare(result(host, graph), transfer.transfer(relit, composite, mask), composite, mask)


def test_find_the_foreground(host, bundled):
    """With a mask from a file in place of what the host's own model would find, whose weights cannot lie here."""
    if not knows(host, "find_the_foreground"):
        pytest.skip("this host has no background removal")
    graph = workflow(host, "find_the_foreground")
    composite, mask = lay(host, graph)
    pictures.write(host.input / "found.png", mask[0])
    removal = only(graph, "RemoveBackground")
    assert graph.prompt.pop(only(graph, "LoadBackgroundRemovalModel")) and wire(graph, "HarmonizeColors", "mask") == [
        removal,
        0,
    ]
    graph.prompt[removal] = {"class_type": "LoadImageMask", "inputs": {"image": "found.png", "channel": "red"}}
    pictures.write(host.input / graph.prompt[only(graph, "LoadImage")]["inputs"]["image"], composite[0])
    compare(result(host, graph), bundled(composite, mask, Settings(method="colors")).refined, composite, mask)


def test_every_workflow_is_tested():
    assert FILES
    assert not [path.name for path in FILES if f"test_{path.stem}" not in globals()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_host_knows_every_node_and_setting(host, path):
    """Names, numbers and choices as the host offers them; only files are not looked for."""
    if not knows(host, path.stem):
        pytest.skip("this host is older than the workflow's nodes")
    for node in workflow(host, path.stem).prompt.values():
        info = host.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]
        known = {**info["required"], **info.get("optional", {})}
        named = {
            name.partition(".")[0] for name in node["inputs"]
        }  # what a dynamic combo brings along stands behind a dot
        assert set(info["required"]) <= set(node["inputs"]) and named <= set(known)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_says_what_it_needs(path):
    """Where a node comes from, where its weights can be had, and what the whole is for."""
    nodes = read(path.stem)["nodes"]
    assert [node for node in nodes if node["type"] == "MarkdownNote"]
    for node in nodes:
        if node["type"] == "MarkdownNote":
            continue
        ours = "DiffHarmony" in node["type"] or node["type"] in OURS
        assert node["properties"]["cnr_id"] == ("diffharmony-nodes" if ours else "comfy-core")
        file = str(node.get("widgets_values", [""])[:1])
        if ".safetensors" in file:
            (model,) = node["properties"]["models"]
            assert (
                model["name"] == node["widgets_values"][0]
                and model["directory"]
                and model["url"].startswith("https://")
            )
