"""Harmonizing by colours alone, at once and without a model in the graph: the change of colour that a regressor
predicts, made to the composite's own pixels at any size.
"""

import functools
from pathlib import Path

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import checkpoint as checkpoints
from ..diffharmony_models import geometry, lut, recolor
from ..diffharmony_models.checkpoint.parts import Part
from ..diffharmony_models.errors import InputError
from ..diffharmony_models.networks.color_regressor import ColorChange, ColorRegressor
from . import checks, doubts, schema
from .host import folders, running

NODE = "HarmonizeColors"


class HarmonizeColors(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Harmonize Colors",
            category=schema.CATEGORY,
            description=(
                "Gives a pasted foreground the light and colours of the picture it stands in, at once: a small network "
                "says how its colours must change, and the composite's own pixels are changed so, at any size. "
                "No checkpoint has to be loaded, no detail is lost."
            ),
            search_aliases=[
                "image harmonization",
                "harmonize",
                "relight",
                "match colors",
                "color transfer",
                "color correction",
                "blend foreground",
            ],
            **schema.where_known(essentials_category="Image Tools"),
            inputs=[
                schema.composite("The picture with the foreground pasted in, at any size."),
                schema.mask(),
                io.Combo.Input(
                    "weights",
                    options=folders.names(),
                    default=folders.BUNDLED,
                    advanced=True,
                    tooltip=(
                        "Where the colour regressor is taken from: the bundled one, or a file in models/diffharmony "
                        "that has one."
                    ),
                ),
                *schema.amounts(),
                schema.amount(
                    "local",
                    "How much of what varies over the foreground is made, a light from one side for instance; 0 "
                    "changes all of it alike.",
                    advanced=True,
                ),
                schema.feather(),
                io.Combo.Input(
                    "frames",
                    options=list(recolor.FRAMES),
                    default=recolor.FRAMES[0],
                    tooltip=(
                        "For the frames of a video. each alone: every picture of the batch has a change of its own. "
                        "one change for all: their mean, nothing can flicker. smoothed: it follows the light slowly."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="The composite in the harmonized colours, of its size."),
                schema.colors(),
            ],
        )

    @classmethod
    def validate_inputs(cls, weights: str | None = None) -> bool | str:
        return folders.fault(weights) or True

    @classmethod
    def fingerprint_inputs(cls, weights: str | None = None, **kwargs: object) -> list | str | None:
        return folders.fingerprint(weights)

    @classmethod
    def execute(
        cls,
        composite: torch.Tensor,
        mask: torch.Tensor,
        weights: str,
        strength: float,
        light: float,
        color: float,
        local: float,
        feather: int,
        frames: str,
    ) -> io.NodeOutput:
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        ui = running.warn(NODE, doubts.of_mask(mask))
        network = regressor(folders.resolve(weights), str(folders.fingerprint(weights)))
        if network is None:
            raise InputError(
                f'{NODE}: "{weights}" has no colour regressor. Choose weights that have one: the bundled checkpoint, '
                "or a file that train-color-regressor wrote."
            )
        amounts = recolor.Amounts(strength, light, color, local)
        alone = [recolor.predict(network, composite[one], mask[one]) for one in running.each(composite)]
        change = ColorChange(*(torch.cat(values) for values in zip(*alone, strict=True)))
        change = recolor.steady(change, mask, frames)
        result, empty = composite.clone(), geometry.is_empty(mask)
        for one in running.each(result):
            if not empty[one].all():
                own = ColorChange(change.curve[one], change.field[one])
                result[one] = recolor.apply(composite[one], mask[one], own, amounts, feather)
        colors = lut.Colors(change, amounts, lut.small(composite), lut.small(mask))
        return io.NodeOutput(checks.to_host(result), colors, ui=ui)


@functools.lru_cache(maxsize=1)
def regressor(path: Path, fingerprint: str) -> ColorRegressor | None:
    """The colour regressor of a checkpoint, on the CPU in float32: one result on every machine. None where it has none.

    The last one stays in memory (15 MB), so that moving a slider does not read the file. fingerprint: of the file.
    """
    part = checkpoints.read(path, parts=("color_regressor",)).color_regressor
    if part is None:
        return None
    # Copies: what is mapped from a file must not outlive the file.
    state = {key: tensor.to(torch.float32, copy=True) for key, tensor in part.state.items()}
    return checkpoints.build_color_regressor(Part(part.config, state)).requires_grad_(False)
