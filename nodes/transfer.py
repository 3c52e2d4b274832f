"""The other ending: the composite's own pixels, at their full size, in the harmonized colours."""

import torch
from comfy_api.latest import io

from ..diffharmony_models import geometry
from ..diffharmony_models import transfer as engine
from . import checks
from .host import running as host

NODE = "TransferToFullResolution"


class TransferToFullResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Transfer to Full Resolution",
            category="DiffHarmony",
            description=(
                "Finds the change of colour between the composite and the harmonized picture, and applies it to the "
                "composite's own pixels: every letter and every hair stays as sharp as it was, at any size."
            ),
            search_aliases=["image harmonization", "color transfer", "match colors", "guided filter", "keep detail"],
            inputs=[
                io.Image.Input("harmonized", tooltip="The harmonized picture at any size, the whole of it."),
                io.Image.Input("composite", tooltip="The original composite at any size. The result has its size."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the foreground is. One for all pictures, or one for each; of the composite's size "
                    "or proportions.",
                ),
                io.Int.Input(
                    "radius",
                    default=engine.RADIUS,
                    min=1,
                    max=128,
                    tooltip="How local the change of colour may be, in pixels of the small picture. Smaller follows "
                    "local light closer, larger is calmer.",
                ),
                io.Float.Input(
                    "detail",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="1: all of the composite's texture. 0: the harmonized picture itself, scaled up.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Pixels of the composite over which the foreground's edge fades in.",
                ),
            ],
            outputs=[io.Image.Output("IMAGE")],
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
    ) -> io.NodeOutput:
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        harmonized = checks.rendered(harmonized, composite, NODE)
        empty = geometry.is_empty(mask)
        result = composite.clone()
        for one in host.each(result):
            if not empty[one].all():
                result[one] = engine.transfer(
                    harmonized[one], composite[one], mask[one], radius=radius, feather=feather, detail=detail
                )
        return io.NodeOutput(checks.to_host(result), ui=host.warn(NODE, checks.doubts(mask)))
