"""The pictures that people have, through the host's own nodes: cut-outs, photos from a phone, large ones, odd sizes and
odd files. Each works, or the node says why not."""

import time
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from harness import ROOT, Failed, Graph, forget_peak
from PIL import Image
from scenes import HEIGHT, WIDTH, chain, check, given, loaded, scene

from diffharmony_models.benchmark.host import peak_memory


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
