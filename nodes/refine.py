"""Stage 2: the residual refiner, at the composite's size."""

import torch
from comfy_api.latest import io

from ..diffharmony_models import geometry
from . import checks
from .host import running as host
from .load import DiffHarmonyRefiner

NODE = "RefineResidual"


class RefineResidual(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Refine (DiffHarmony)",
            category="DiffHarmony",
            description="The paper's ending: brings back what the VAE lost, with a residual network that also sees the "
            "composite, and puts the background back.",
            search_aliases=["harmonize refine", "refinement", "restore detail", "image harmonization"],
            inputs=[
                DiffHarmonyRefiner.Input("refiner", tooltip="The refiner of LoadDiffHarmony."),
                io.Image.Input(
                    "harmonized",
                    tooltip="The IMAGE of VAEDecodeHigherRes. One of another size is scaled to the composite's.",
                ),
                io.Image.Input("composite", tooltip="The picture that was harmonized. The result has its size."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the foreground is. One for all pictures, or one for each; of the composite's size "
                    "or proportions.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the refiner's change is taken: 0 none, 1 all.",
                ),
                io.Boolean.Input(
                    "keep_background",
                    default=True,
                    tooltip="On: what lies outside the mask is the composite's own pixels, bit for bit.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Pixels over which the foreground's edge fades in, where the background is kept. 0: as the "
                    "mask is.",
                ),
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
        host.check_refiner(refiner, NODE)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        harmonized = geometry.resize(checks.rendered(harmonized, composite, NODE), composite.shape[-2:])
        refined = host.refine(refiner, harmonized, composite, mask).to(composite.device)
        if not torch.isfinite(refined).all():
            raise ValueError(
                f"{NODE}: the refined image holds NaN. Choose weight_dtype fp32 in LoadDiffHarmony, or get the weights "
                "anew."
            )
        result = torch.lerp(harmonized, refined, strength)
        if keep_background:
            result = geometry.paste(result, composite, mask, feather)
        empty = geometry.is_empty(mask)[:, None, None, None]
        result = checks.to_host(torch.where(empty, composite, result))
        return io.NodeOutput(result, ui=host.warn(NODE, checks.doubts(mask)))
