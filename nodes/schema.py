"""What the nodes' schemas share: their custom types, and each input that more than one of them has."""

import dataclasses
from typing import Any

from comfy_api.v0_0_2 import io

CATEGORY = "DiffHarmony"
SHAPES = {"keep proportions": "keep", "square": "square"}  # as the graph and as `geometry.inference_size` name them

DiffHarmonyRefiner = io.Custom("DIFFHARMONY_REFINER")
DiffHarmonyColors = io.Custom("DIFFHARMONY_COLORS")  # a `lut.Colors`: the change, its amounts, what it was found on
DiffHarmonyCrop = io.Custom("DIFFHARMONY_CROP")  # a `crop.Crops`


def colors() -> io.Output:
    return DiffHarmonyColors.Output("colors", tooltip="The change of colour itself, of each picture.")


def where_known(**fields: Any) -> dict[str, Any]:
    """Those fields of a Schema that this host knows; one that it does not would refuse the whole package."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {name: value for name, value in fields.items() if name in known}


def composite(tooltip: str) -> io.Image.Input:
    return io.Image.Input("composite", tooltip=tooltip)


def sampled_composite() -> io.Image.Input:
    return composite(
        "The picture with the foreground pasted in. For the bundled checkpoint, best as HarmonizeColors gives it; "
        "for the published one as it is."
    )


def mask() -> io.Mask.Input:
    return io.Mask.Input(
        "mask",
        tooltip="1 where the foreground is. One for all pictures, or one for each; of the composite's size or "
        "proportions.",
    )


def vae() -> io.Vae.Input:
    return io.Vae.Input(
        "vae", tooltip="The VAE of LoadDiffHarmony. For the published weights any SD 1.5 VAE works too."
    )


def null_text() -> io.Conditioning.Input:
    return io.Conditioning.Input("null_text", tooltip="The null_text of LoadDiffHarmony.")


def seed() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Another seed gives a slightly different result. The noise is drawn on the CPU: the same on every "
        "machine.",
    )


def resolution() -> io.Int.Input:
    return io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=8192,
        step=64,
        tooltip="Where the model works: side in pixels of a square of the same area. 0: what the checkpoint was made "
        "for (1024 for the published one). Higher keeps more detail and takes longer.",
    )


def shape() -> io.Combo.Input:
    return io.Combo.Input(
        "shape",
        options=list(SHAPES),
        default="keep proportions",
        advanced=True,
        tooltip="keep proportions: sides rounded to 64 pixels. square: squashed to resolution x resolution, as in the "
        "paper.",
    )


def feather() -> io.Int.Input:
    return io.Int.Input(
        "feather",
        default=0,
        min=0,
        max=512,
        tooltip="Pixels of the composite over which the foreground's edge fades in. 0: as the mask is.",
    )


def share(name: str, tooltip: str, **settings: Any) -> io.Float.Input:
    """A number from 0 to 1 that is 1 by default."""
    return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.05, tooltip=tooltip, **settings)


def amount(name: str, tooltip: str, **settings: Any) -> io.Float.Input:
    """How much of a change is made: 1 by default, at most 1.5. See `recolor.Amounts`."""
    return io.Float.Input(name, default=1.0, min=0.0, max=1.5, step=0.05, tooltip=tooltip, **settings)


def amounts(**settings: Any) -> list[io.Float.Input]:
    """strength, light and color."""
    return [
        amount("strength", "How much of the change is made: 0 none, 1 all of it; above 1 goes further.", **settings),
        amount("light", "How much of the change of light and dark is made: 0 none, 1 all of it.", **settings),
        amount(
            "color",
            "How much of the change of hue and saturation is made: 0 none, 1 all of it. Lower keeps a thing's own "
            "colour.",
            **settings,
        ),
    ]
