"""Wrong wires: what a node says when it gets what it cannot use. Each message names what came, what was expected and
what to wire instead; and it comes from our node, not from somewhere deep inside the host."""

import pictures
import pytest
import torch
import weights
from graphs import BUNDLED, colors, condition, decode, harmonize, ksampler, pick, wires
from harness import Failed

from diffharmony_models import checkpoint as checkpoints

HEIGHT, WIDTH = 96, 128
pytestmark = pytest.mark.usefixtures("regressor")


def tensor(host, graph, *shape: int, kind: str = "tensor", value: float = 0.5) -> list:
    return graph("TestLoad", file=host.give(value=torch.full(shape, value)), kind=kind)[0]


def fake(kind: str):
    return lambda host, graph: graph("TestFake", kind=kind)[0]


def image(*shape: int):
    return lambda host, graph: tensor(host, graph, *shape)


def latent(*shape: int):
    return lambda host, graph: tensor(host, graph, *shape, kind="latent")


def text(width: int):
    return lambda host, graph: tensor(host, graph, 1, 77, width, kind="conditioning")


NOTHING = fake("nothing")
# What is wired in place of the right thing: node, input, what came, words of the message.
CASES = {
    # MODEL
    "SD 1.5 MODEL": ("HarmonizeLatent", "model", fake("SD 1.5"), ["4 input channels", "9", "LoadDiffHarmony"]),
    "SDXL MODEL": ("HarmonizeLatent", "model", fake("SDXL"), ["SDXL", "9", "LoadDiffHarmony"]),
    "SDXL inpainting MODEL": ("HarmonizeLatent", "model", fake("SDXL inpainting"), ["SDXL", "LoadDiffHarmony"]),
    "Flux MODEL": ("HarmonizeLatent", "model", fake("Flux"), ["Flux", "9", "LoadDiffHarmony"]),
    "no MODEL": ("HarmonizeLatent", "model", NOTHING, ["no MODEL", "UNet", "LoadDiffHarmony"]),
    # VAE
    "Flux VAE": ("HarmonizeLatent", "vae", fake("Flux VAE"), ["16 latent channels", "4", "VAELoader"]),
    "Flux VAE for conditioning": (
        "DiffHarmonyConditioning",
        "vae",
        fake("Flux VAE"),
        ["16 latent channels", "4", "VAELoader"],
    ),
    "Flux VAE for decoding": ("VAEDecodeHigherRes", "vae", fake("Flux VAE"), ["16 latent channels", "4", "VAELoader"]),
    "no VAE": ("HarmonizeLatent", "vae", NOTHING, ["no VAE", "VAELoader"]),
    "no VAE for conditioning": ("DiffHarmonyConditioning", "vae", NOTHING, ["no VAE", "VAELoader"]),
    "no VAE for decoding": ("VAEDecodeHigherRes", "vae", NOTHING, ["no VAE", "VAELoader"]),
    # CONDITIONING
    "text of SDXL's width": ("HarmonizeLatent", "null_text", text(2048), ["2048", "LoadDiffHarmony"]),
    "text of another width": ("HarmonizeLatent", "null_text", text(24), ["24", "LoadDiffHarmony"]),
    "no text": ("HarmonizeLatent", "null_text", NOTHING, ["no null text", "CLIP", "LoadDiffHarmony"]),
    "no text for conditioning": ("DiffHarmonyConditioning", "null_text", NOTHING, ["no null text", "LoadDiffHarmony"]),
    # pictures and masks
    "three masks for two pictures": ("HarmonizeLatent", "mask", image(3, HEIGHT, WIDTH), ["2 composites", "3 masks"]),
    "two masks for one picture": (
        "DiffHarmonyConditioning",
        "composite",
        image(1, HEIGHT, WIDTH, 3),
        ["1 composites", "2 masks"],
    ),
    "mask of other proportions": ("HarmonizeLatent", "mask", image(1, WIDTH, HEIGHT), ["128x96", "96x128"]),
    "mask of other proportions, conditioning": (
        "DiffHarmonyConditioning",
        "mask",
        image(1, 96, 96),
        ["128x96", "96x96"],
    ),
    "mask of other proportions, refining": ("RefineResidual", "mask", image(1, 96, 96), ["128x96", "96x96"]),
    "mask of other proportions, transfer": ("TransferToFullResolution", "mask", image(1, 96, 96), ["128x96", "96x96"]),
    "the mask that LoadImage makes up": (
        "HarmonizeLatent",
        "mask",
        lambda host, graph: tensor(host, graph, 1, 64, 64, value=0.0),
        ["64x64", "no mask is drawn", "Load Image (as Mask)"],
    ),
    "an image as mask": ("HarmonizeLatent", "mask", image(1, HEIGHT, WIDTH, 3), ["MASK", "ImageToMask"]),
    "a mask as image": ("HarmonizeLatent", "composite", image(1, HEIGHT, WIDTH), ["IMAGE", "composite"]),
    "no composite": ("HarmonizeLatent", "composite", NOTHING, ["no composite", "LoadImage"]),
    "no mask": ("TransferToFullResolution", "mask", NOTHING, ["no mask", "MASK"]),
    "an empty batch": ("HarmonizeLatent", "composite", image(0, HEIGHT, WIDTH, 3), ["empty batch"]),
    "a single harmonized picture": (
        "RefineResidual",
        "harmonized",
        image(1, HEIGHT, WIDTH, 3),
        ["1 harmonized", "2 composites"],
    ),
    "another picture harmonized": ("RefineResidual", "harmonized", image(2, 512, 128, 3), ["128x512", "128x96"]),
    "another picture for transfer": (
        "TransferToFullResolution",
        "harmonized",
        image(2, 512, 128, 3),
        ["128x512", "128x96"],
    ),
    "a composite that was not the one": (
        "VAEDecodeHigherRes",
        "composite",
        image(2, 512, 128, 3),
        ["128x512", "composite"],
    ),
    "no composite to recolour": ("HarmonizeColors", "composite", NOTHING, ["no composite", "LoadImage"]),
    "no mask to recolour": ("HarmonizeColors", "mask", NOTHING, ["no mask", "MASK"]),
    "an image as mask, recolouring": ("HarmonizeColors", "mask", image(1, HEIGHT, WIDTH, 3), ["MASK", "ImageToMask"]),
    "mask of other proportions, recolouring": ("HarmonizeColors", "mask", image(1, 96, 96), ["128x96", "96x96"]),
    "three masks, recolouring": ("HarmonizeColors", "mask", image(3, HEIGHT, WIDTH), ["2 composites", "3 masks"]),
    # LATENT
    "Flux LATENT": ("HarmonizeLatent", "latent", latent(2, 16, 12, 16), ["[2, 16, 12, 16]", "4"]),
    "video LATENT": ("HarmonizeLatent", "latent", latent(1, 4, 2, 12, 16), ["[1, 4, 2, 12, 16]", "4"]),
    "LATENT of another picture": ("HarmonizeLatent", "latent", latent(2, 4, 40, 8), ["64x320", "128x96"]),
    "three LATENTs for two pictures": (
        "HarmonizeLatent",
        "latent",
        latent(3, 4, 12, 16),
        ["2 composites", "3 latents"],
    ),
    "Flux LATENT for decoding": ("VAEDecodeHigherRes", "samples", latent(2, 16, 12, 16), ["[2, 16, 12, 16]", "4"]),
    # the rest
    "no refiner": ("RefineResidual", "refiner", NOTHING, ["no refiner", "refinement", "LoadDiffHarmony"]),
}


def node(graph, shared: dict, name: str, **changes):
    if name == "HarmonizeLatent":
        settings = {
            "seed": 0,
            "steps": 1,
            "sampler_name": "euler",
            "scheduler": "normal",
            "resolution": 64,
            "shape": "keep proportions",
        }
        inputs = pick(shared, "model", "vae", "null_text", "composite", "mask")
    elif name == "DiffHarmonyConditioning":
        settings = {"resolution": 64, "shape": "keep proportions"}
        inputs = pick(shared, "vae", "null_text", "composite", "mask")
    elif name == "VAEDecodeHigherRes":
        settings = {"method": "bilinear", "width": 0, "height": 0}
        inputs = pick(shared, "vae", "composite") | {"samples": shared["latent"]}
    elif name == "HarmonizeColors":
        return colors(graph, **{**pick(shared, "composite", "mask"), **changes})
    elif name == "RefineResidual":
        settings = {"strength": 1.0, "keep_background": True, "feather": 0}
        inputs = pick(shared, "refiner", "composite", "mask") | {"harmonized": shared["composite"]}
    else:
        settings = {"radius": 12, "detail": 1.0, "feather": 0}
        inputs = pick(shared, "composite", "mask") | {"harmonized": shared["composite"]}
    return graph(name, **{**settings, **inputs, **changes})


def wired(host):
    graph, shared = wires(host, BUNDLED, *pictures.composites(2, HEIGHT, WIDTH))
    shared["latent"] = graph("TestLoad", file=host.give(value=torch.zeros(2, 4, 12, 16)), kind="latent")[0]
    return graph, shared


@pytest.mark.parametrize("case", CASES)
def test_wrong_wires(host, case):
    name, place, wrong, words = CASES[case]
    graph, shared = wired(host)
    with pytest.raises(Failed) as failure:
        host.fetch(
            graph,
            node(graph, shared, name, **{place: wrong(host, graph)})[2 if name == "DiffHarmonyConditioning" else 0],
        )
    message = str(failure.value)
    assert failure.value.node == name and failure.value.kind.endswith("InputError"), message
    assert all(word in message for word in words), message


# What reaches the host's own KSampler as CONDITIONING, and the words of its message.
SAMPLER_CASES = {
    "a text encoder's": (lambda host, graph, shared: text(768)(host, graph), ["768", "64", "DiffHarmonyConditioning"]),
    "the null text without the composite": (
        lambda host, graph, shared: shared["null_text"],
        ["composite", "DiffHarmonyConditioning"],
    ),
    "a composite with another checkpoint's null text": (
        lambda host, graph, shared: condition(graph, {**shared, "null_text": text(24)(host, graph)}, 64)[0],
        ["24", "64", "LoadDiffHarmony"],
    ),
}


@pytest.mark.parametrize("case", SAMPLER_CASES)
def test_wrong_conditioning_at_a_sampler(host, case):
    wrong, words = SAMPLER_CASES[case]
    graph, shared = wired(host)
    conditioned = wrong(host, graph, shared)
    inputs = {"positive": conditioned, "negative": conditioned, "latent_image": shared["latent"]}
    with pytest.raises(Failed) as failure:
        host.fetch(graph, ksampler(graph, shared["model"], condition(graph, shared, 64), **inputs))
    message = str(failure.value)
    assert failure.value.kind.endswith("InputError") and all(word in message for word in words), message


@pytest.mark.parametrize(
    "name",
    [
        "HarmonizeColors",
        "HarmonizeLatent",
        "DiffHarmonyConditioning",
        "VAEDecodeHigherRes",
        "RefineResidual",
        "TransferToFullResolution",
    ],
)
def test_the_right_wires_of_these_cases_work(host, name):
    graph, shared = wired(host)
    (found,) = host.fetch(graph, node(graph, shared, name)[2 if name == "DiffHarmonyConditioning" else 0])
    assert len(found) == 2 and torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["HarmonizeLatent", "RefineResidual", "TransferToFullResolution"])
def test_a_mask_of_the_same_proportions_is_scaled(host, name):
    composite, mask = pictures.composites(2, HEIGHT, WIDTH)
    large = torch.nn.functional.interpolate(mask, scale_factor=2, mode="nearest")
    graph, shared = wires(host, BUNDLED, composite, mask)
    scaled = graph("TestLoad", file=host.give(value=pictures.mask(large)), kind="tensor")[0]
    found, expected = host.fetch(graph, node(graph, shared, name, mask=scaled)[0], node(graph, shared, name)[0])
    assert found.shape == expected.shape
    if name == "HarmonizeLatent":
        torch.testing.assert_close(found, expected)
    else:
        # Where it was scaled the mask's edge is soft.
        assert pictures.psnr(found, expected) >= 25
        assert torch.equal(found[:, :10], pictures.image(composite)[:, :10])


def test_a_picture_with_transparency_works(host):
    graph, shared = wired(host)
    picture = tensor(host, graph, 2, HEIGHT, WIDTH, 4)
    assert torch.isfinite(host.fetch(graph, node(graph, shared, "HarmonizeLatent", composite=picture)[0])[0]).all()


def test_a_checkpoint_without_a_vae_says_which_one_to_take(host):
    content = weights.whole()
    content.vae = content.refiner = None
    checkpoints.write(content, host.models / "diffharmony" / "unet only.safetensors")
    graph, shared = wires(host, "unet only.safetensors", *pictures.composites())
    with pytest.raises(Failed, match="VAELoader"):
        host.fetch(graph, harmonize(graph, shared, 64))
    with pytest.raises(Failed, match="no refiner"):
        host.fetch(graph, node(graph, shared, "RefineResidual")[0])


def test_a_latent_straight_from_a_sampler(host, bundled):
    """It is used as it is; what comes out has its size."""
    composite, mask = pictures.composites(2, HEIGHT, WIDTH)
    graph, shared = wires(host, BUNDLED, composite, mask)
    encoded = graph("VAEEncode", pixels=shared["composite"], vae=shared["vae"])[0]
    harmonized = harmonize(graph, shared, 0, latent=encoded)
    latents, given, decoded = host.fetch(graph, harmonized, encoded, decode(graph, shared, harmonized))
    assert latents.shape == given.shape == (2, 4, 12, 16)
    assert decoded.shape == (2, HEIGHT, WIDTH, 3)
    assert (latents - given).abs().max() > 1e-2


def test_conditioning_goes_with_the_hosts_own_latents_of_its_size(host):
    graph, shared = wired(host)
    (found,) = host.fetch(graph, condition(graph, shared, 64)[2])
    assert found.shape == (2, 4, 8, 8) and not found.any()
