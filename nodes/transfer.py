"""The other ending: the composite's own pixels, at their full size, in the harmonized colours."""

import logging

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import geometry, lut, recolor
from ..diffharmony_models import transfer as engine
from ..diffharmony_models.align import align as laid_over
from . import checks, doubts, schema
from .host import running

logger = logging.getLogger(__name__)

NODE = "TransferToFullResolution"


class TransferToFullResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Transfer to Full Resolution",
            category=schema.CATEGORY,
            description=(
                "Finds the change of colour between the composite and the harmonized picture, and applies it to the "
                "composite's own pixels: every letter and every hair stays as sharp as it was, at any size."
            ),
            search_aliases=["image harmonization", "color transfer", "match colors", "guided filter", "keep detail"],
            inputs=[
                io.Image.Input("harmonized", tooltip="The harmonized picture at any size, the whole of it."),
                schema.composite("The original composite at any size. The result has its size."),
                schema.mask(),
                io.Int.Input(
                    "radius",
                    default=engine.RADIUS,
                    min=1,
                    max=128,
                    advanced=True,
                    tooltip="How local the change of colour may be, in pixels of the small picture. Smaller follows "
                    "local light closer, larger is calmer.",
                ),
                schema.share(
                    "detail",
                    "1: all of the composite's texture. 0: the harmonized picture itself, scaled up.",
                    advanced=True,
                ),
                schema.feather(),
                *schema.amounts(optional=True),
                io.Boolean.Input(
                    "align",
                    default=False,
                    optional=True,
                    tooltip="Lays the harmonized picture over the composite first, where a model has moved or scaled "
                    "what it painted by some pixels.",
                ),
            ],
            outputs=[io.Image.Output("IMAGE"), schema.colors()],
        )

    @classmethod
    def execute(
        cls,
        harmonized: torch.Tensor,
        composite: torch.Tensor,
        mask: torch.Tensor,
        radius: int,
        detail: float,
        feather: int,
        strength: float = 1.0,
        light: float = 1.0,
        color: float = 1.0,
        align: bool = False,
    ) -> io.NodeOutput:
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        harmonized, composite, mask = checks.harmonized(harmonized, composite, mask, NODE)
        amounts = recolor.Amounts(strength, light, color)
        empty = geometry.is_empty(mask)
        result, models, notes = composite.clone(), [], doubts.of_mask(mask)
        for number, one in enumerate(running.each(result)):
            picture, seen, model = harmonized[one], None, None
            if not empty[one].all():
                if align:
                    picture, seen, (fit,) = laid_over(picture, composite[one])
                    logger.info("%s: picture %d %s", NODE, number + 1, fit)
                    notes += doubts.of_fit(fit)
                model = engine.find(picture, composite[one], mask[one], radius, seen=seen)
            if model is not None:
                engine.apply(model, picture, composite[one], mask[one], feather, detail, result[one])
                result[one] = recolor.mixed(composite[one], result[one], amounts)
            models.append(lut.reduced(model))
        colors = lut.Colors(models, amounts, lut.small(composite), lut.small(mask))
        return io.NodeOutput(checks.to_host(result), colors, ui=running.warn(NODE, notes))
