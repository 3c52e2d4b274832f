"""The pictures and masks that people have, through the host's own nodes: cut-outs, the mask editor, segmentation, soft
edges, photos from a phone, odd sizes and odd files. Each works, or the node says why not."""

import time
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from graphs import BUNDLED
from harness import ROOT, Failed, Graph, forget_peak
from PIL import Image

from diffharmony_models.benchmark.host import peak_memory

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


def test_a_cut_out_on_a_background(host):
    """Load Image gives 1 - alpha: inverted, it lays the cut-out on the background and is, placed there, the mask."""
    scenery, matte = scene()
    box = matte.getbbox()
    cut = scenery.convert("RGBA")
    cut.putalpha(matte)
    graph = Graph()
    source, transparent = loaded(host, graph, "cut-out.png", cut.crop((8, 8, WIDTH - 8, HEIGHT - 8)).save)
    background, _ = loaded(host, graph, "background.png", scene()[0].transpose(Image.Transpose.ROTATE_180).save)
    opaque = graph("InvertMask", mask=transparent)[0]
    place = {"source": source, "destination": background, "x": 8, "y": 8, "resize_source": False}
    composite = graph("ImageCompositeMasked", **place, mask=opaque)[0]
    empty = graph("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)[0]
    mask = graph("MaskComposite", destination=empty, source=opaque, x=8, y=8, operation="add")[0]
    found = check(host, graph, composite, mask, chain(graph, composite, mask))
    rows, columns = (found[0] > 0.5).nonzero().unbind(1)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box


def test_a_cut_outs_mask_that_nobody_inverted(host):
    """It works, as its mask says; the log names the node that is missing."""
    scenery, matte = scene()
    scenery.putalpha(matte)
    graph = Graph()
    composite, mask = loaded(host, graph, "not inverted.png", scenery.save)
    before = len(host.said())
    check(host, graph, composite, mask, chain(graph, composite, mask))
    assert "Invert Mask" in host.said()[before:]

    before = len(host.said())
    inverted = graph("InvertMask", mask=mask)[0]
    check(host, graph, composite, inverted, chain(graph, composite, inverted))
    assert "Invert Mask" not in host.said()[before:]


def test_a_mask_from_the_mask_editor(host):
    """The editor saves the picture anew, transparent where it was painted, in a folder of its own."""
    scenery, matte = scene()
    scenery.putalpha(matte.point(lambda value: 255 - value))
    graph = Graph()
    file = "clipspace/clipspace-painted-masked-1.png"
    composite, mask = loaded(host, graph, file, scenery.save)
    graph.prompt[composite[0]]["inputs"]["image"] = f"{file} [input]"
    found = check(host, graph, composite, mask, chain(graph, composite, mask))
    assert np.array_equal(found[0].numpy() * 255, np.asarray(matte))


# The same mask as segmentation nodes give it.
KINDS = {
    "[B, 1, H, W]": lambda mask: mask[:, None],
    "[H, W]": lambda mask: mask[0],
    "bool": lambda mask: mask > 0.5,
    "half": lambda mask: mask.half(),
    "bytes of 0 and 1": lambda mask: mask.to(torch.uint8),
    "a little outside [0, 1]": lambda mask: mask * 1.2 - 0.1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_from_a_segmentation_node(host, kind):
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    mask = pictures.mask(mask)
    graph = Graph()
    image = given(host, graph, pictures.image(composite))
    plain, other = (chain(graph, image, given(host, graph, value)) for value in (mask, KINDS[kind](mask)))
    expected, found = host.fetch(graph, plain, other)
    assert torch.equal(found, expected) and not torch.equal(found, pictures.image(composite))


def test_soft_edges_blend(host):
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    soft = torch.nn.functional.avg_pool2d(mask, 9, 1, 4)[:, 0]
    graph = Graph()
    image, matte = given(host, graph, pictures.image(composite)), given(host, graph, soft)
    result = chain(graph, image, matte)
    check(host, graph, image, matte, result)
    found = host.fetch(graph, result)[0]
    change = (found - pictures.image(composite)).abs().mean(-1)
    assert change[(soft > 0) & (soft < 0.3)].mean() < 0.6 * change[soft > 0.7].mean()


FILES = {
    "grey.png": lambda picture, path: picture.convert("L").save(path),
    "16 bit.png": lambda picture, path: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(
        path
    ),
    "palette.png": lambda picture, path: picture.convert("P", palette=Image.Palette.ADAPTIVE).save(path),
    "opaque.png": lambda picture, path: picture.convert("RGBA").save(path),
    "cmyk.jpg": lambda picture, path: picture.convert("CMYK").save(path, quality=95),
    "web.webp": lambda picture, path: picture.save(path, lossless=True),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_many_kinds(host, name):
    picture, matte = scene()
    graph = Graph()
    composite, _ = loaded(host, graph, name, lambda path: FILES[name](picture, path))
    matte.save(host.input / "black and white.png")
    mask = graph("LoadImageMask", image="black and white.png", channel="red")[0]
    image, found = host.fetch(graph, composite, chain(graph, composite, mask))
    outside = torch.from_numpy(np.array(matte) == 0)[None]
    assert found.shape == image.shape == (1, HEIGHT, WIDTH, 3) and found.isfinite().all()
    assert torch.equal(found[outside], image[outside])


def test_a_phones_photo_that_lies_on_its_side(host):
    """What is seen is upright, by the EXIF orientation; the mask is drawn on what is seen."""
    picture, matte = scene()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    graph = Graph()
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    composite, _ = loaded(host, graph, "phone.jpg", lambda path: lying.save(path, exif=exif, quality=95))
    matte.save(host.input / "upright.png")
    mask = graph("LoadImageMask", image="upright.png", channel="red")[0]
    check(host, graph, composite, mask, chain(graph, composite, mask))

    matte.transpose(Image.Transpose.ROTATE_90).save(host.input / "lying.png")
    mask = graph("LoadImageMask", image="lying.png", channel="red")[0]
    with pytest.raises(Failed, match="on its side"):
        host.fetch(graph, chain(graph, composite, mask))


def test_a_photo_of_12_megapixels(host):
    """To the end, as large as it is, in the memory of a few copies of it."""
    picture, matte = scene(756, 1008)
    size = (4032, 3024)
    graph = Graph()
    composite, _ = loaded(host, graph, "large.jpg", picture.resize(size, Image.Resampling.BICUBIC).save)
    matte.resize(size, Image.Resampling.NEAREST).save(host.input / "large mask.png")
    mask = graph("LoadImageMask", image="large mask.png", channel="red")[0]
    result = chain(graph, composite, mask, resolution=256, steps=5)
    saved = graph("SaveImage", images=result, filename_prefix="large")
    loaded_photo = graph(
        "SaveImage", images=composite, filename_prefix="photo"
    )  # hosts decode a JPEG each in its own way
    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        forget_peak(host.process.pid)
        before = peak_memory(host.process.pid)
    start = time.monotonic()
    outputs = host.run(graph).outputs
    print(
        f"{time.monotonic() - start:.0f} s", f"{(peak_memory(host.process.pid) - before) / 1e9:.2f} GB" if linux else ""
    )
    found, own = (
        Image.open(host.output / outputs[node.identity]["images"][0]["filename"]) for node in (saved, loaded_photo)
    )
    with found, own:
        assert found.size == size
        inside, outside = (size[0] // 2, size[1] // 2), (10, 10)
        assert found.getpixel(outside) == own.getpixel(outside) and found.getpixel(inside) != own.getpixel(inside)
    if linux:
        assert peak_memory(host.process.pid) - before < 3e9


@pytest.mark.parametrize("level", [1, 2])
def test_a_mask_one_level_off_is_empty_there(host, level):
    """Newer hosts read the opaque alpha of a lossy WebP as 254: the background stays bit for bit all the same."""
    composite, mask = pictures.composites()
    graph = Graph()
    picture, matte, darker = (
        given(host, graph, value)
        for value in (
            pictures.image(composite),
            pictures.mask(mask.clamp(min=level / 255)),
            pictures.image(composite / 2),
        )
    )
    inputs = {"harmonized": darker, "composite": picture, "mask": matte}
    (result,) = host.fetch(graph, graph("TransferToFullResolution", **inputs, radius=12, detail=0.0, feather=0)[0])
    outside = mask[:, 0] == 0
    assert torch.equal(result[outside], pictures.image(composite)[outside]) == (level == 1)


REFINING = """
import asyncio, sys
sys.path.insert(0, "."); sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, nodes, torch
asyncio.run(nodes.load_custom_node("PACK", module_parent="custom_nodes"))
load, refine = (nodes.NODE_CLASS_MAPPINGS[name] for name in ("LoadDiffHarmony", "RefineResidual"))
picture, mask = torch.rand(1, 64, 96, 3), torch.ones(1, 64, 96)
for total in (10**9, 10**6):
    comfy.model_management.get_total_memory = lambda *_, **__: total
    try:
        refiner = load.execute("diffharmony-small (bundled)", "fp32").args[3]
        print("refined", refine.execute(refiner, picture, picture, mask, 1.0, True, 0).args[0].shape)
    except ValueError as error:
        print("refused", error)
"""


def test_refining_what_never_fits_into_memory_is_refused(host):
    fits, refused = (
        line for line in host.script(REFINING.replace("PACK", str(ROOT))).splitlines() if line.startswith("ref")
    )
    assert fits.startswith("refined") and refused.startswith("refused")
    assert "96x64" in refused and "TransferToFullResolution" in refused


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (40, 1), (7, 5), (65, 63), (17, 200), (200, 3), (17, 4000)])
def test_odd_sizes(host, height, width):
    """What is too long and thin for the resolution goes as a square."""
    composite = torch.rand(1, height, width, 3)
    mask = torch.zeros(1, height, width)
    mask[:, : (height + 1) // 2, : (width + 1) // 2] = 1
    graph = Graph()
    image, matte = given(host, graph, composite), given(host, graph, mask)
    result = chain(graph, image, matte)
    if max(height, width) > 16 * min(height, width):
        with pytest.raises(Failed, match="too long and thin"):
            host.fetch(graph, result)
        result = chain(graph, image, matte, shape="square")
    (found,) = host.fetch(graph, result)
    assert found.shape == composite.shape and found.isfinite().all()
    assert torch.equal(found[mask == 0], composite[mask == 0])


def test_a_picture_of_one_channel_is_grey(host):
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    grey = pictures.image(composite).mean(-1, keepdim=True)
    graph = Graph()
    matte = given(host, graph, pictures.mask(mask))
    one, three = (chain(graph, given(host, graph, value), matte) for value in (grey, grey.expand(-1, -1, -1, 3)))
    torch.testing.assert_close(*host.fetch(graph, one, three), atol=1e-4, rtol=0)


def broken(shape: tuple, value: float) -> torch.Tensor:
    tensor = torch.full(shape, 0.5)
    tensor[0, 3, 5] = value
    return tensor


IMAGE, MASK = (1, HEIGHT, WIDTH, 3), (1, HEIGHT, WIDTH)
# Which input, its value, and the words of the message.
REFUSED = {
    "NaN in the composite": ("composite", broken(IMAGE, float("nan")), ["composite", "NaN"]),
    "infinity in the composite": ("composite", broken(IMAGE, float("inf")), ["composite", "infinity"]),
    "a composite of 0 to 255": ("composite", broken(IMAGE, 255), ["composite", "0.5 to 255", "255"]),
    "a composite of two channels": ("composite", torch.rand(1, HEIGHT, WIDTH, 2), ["composite", "[1, 96, 128, 2]"]),
    "NaN in the mask": ("mask", broken(MASK, float("nan")), ["mask", "NaN"]),
    "a mask of labels": ("mask", broken(MASK, 7), ["mask", "0.5 to 7", "[0, 1]"]),
    "a mask without content": ("mask", torch.zeros(0, HEIGHT, WIDTH), ["mask", "empty batch"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_no_picture_has(host, case):
    name, value, words = REFUSED[case]
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    graph = Graph()
    wired = {
        "composite": given(host, graph, pictures.image(composite)),
        "mask": given(host, graph, pictures.mask(mask)),
    }
    wired[name] = given(host, graph, value)
    with pytest.raises(Failed) as failure:
        host.fetch(graph, chain(graph, **wired))
    assert failure.value.node == "HarmonizeLatent" and all(word in str(failure.value) for word in words), str(
        failure.value
    )


@pytest.mark.parametrize("height, width", [(HEIGHT, WIDTH), (128, 128)])
def test_no_mask_drawn(host, height, width):
    """The empty mask that Load Image makes up is no empty mask of a square picture."""
    graph = Graph()
    composite, mask = loaded(host, graph, f"no mask {width}x{height}.png", scene(height, width)[0].save)
    with pytest.raises(Failed, match=r"(?s)no mask is drawn.*Open in Mask Editor.*Load Image \(as Mask\)") as failure:
        host.fetch(graph, chain(graph, composite, mask))
    assert failure.value.node == "HarmonizeLatent"


def test_an_empty_mask_of_the_pictures_own_size(host):
    """Also where that is the size of the mask that Load Image makes up."""
    graph = Graph()
    composite, mask = loaded(host, graph, "small.png", scene(64, 64)[0].save)
    image, found = host.fetch(graph, composite, chain(graph, composite, mask))
    assert torch.equal(found, image)
