"""Stage 2: the residual refiner, at the composite's size."""

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import geometry
from . import checks, doubts, schema
from .host import running

NODE = "RefineResidual"


class RefineResidual(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Refine (DiffHarmony)",
            category=schema.CATEGORY,
            description="The paper's ending: brings back what the VAE lost, with a residual network that also sees the "
            "composite, and puts the background back.",
            search_aliases=["harmonize refine", "refinement", "restore detail", "image harmonization"],
            inputs=[
                schema.DiffHarmonyRefiner.Input("refiner", tooltip="The refiner of LoadDiffHarmony."),
                io.Image.Input(
                    "harmonized",
                    tooltip="The IMAGE of VAEDecodeHigherRes. One of another size is scaled to the composite's.",
                ),
                schema.composite("The picture that was harmonized. The result has its size."),
                schema.mask(),
                schema.share("strength", "How much of the refiner's change is taken: 0 none, 1 all."),
                io.Boolean.Input(
                    "keep_background",
                    default=True,
                    tooltip="On: what lies outside the mask is the composite's own pixels, bit for bit.",
                ),
                schema.feather(),
            ],
            outputs=[io.Image.Output("IMAGE")],
        )

    @classmethod
    def execute(
        cls,
        refiner: "io.Model.Type",
        harmonized: torch.Tensor,
        composite: torch.Tensor,
        mask: torch.Tensor,
        strength: float,
        keep_background: bool,
        feather: int,
    ) -> io.NodeOutput:
        checks.refiner(refiner, NODE)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        harmonized, composite, mask = checks.harmonized(harmonized, composite, mask, NODE)
        harmonized = geometry.resize(harmonized, composite.shape[-2:])
        refined = running.refine(refiner, harmonized, composite, mask).to(composite.device)
        checks.finite(refined, "the refined image", NODE)
        result = torch.lerp(harmonized, refined, strength)
        if keep_background:
            result = geometry.paste(result, composite, mask, feather)
        empty = geometry.is_empty(mask)[:, None, None, None]
        result = checks.to_host(torch.where(empty, composite, result))
        return io.NodeOutput(result, ui=running.warn(NODE, doubts.of_mask(mask)))
