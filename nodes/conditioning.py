"""Stage 1 for the host's own sampler nodes: the composite and its mask as conditioning."""

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import geometry
from . import checks, doubts, schema
from .host import attachments, running

NODE = "DiffHarmonyConditioning"


class DiffHarmonyConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="DiffHarmony Conditioning",
            category=schema.CATEGORY,
            description=(
                "Harmonizing with any sampler node instead of HarmonizeLatent: KSampler with cfg 1, denoise 1, "
                "euler_ancestral, normal and the checkpoint's own steps (5 for the published one, 2 for the bundled) "
                "is the published method."
            ),
            search_aliases=["image harmonization", "harmonize", "ksampler harmonization"],
            inputs=[
                schema.vae(),
                schema.null_text(),
                schema.sampled_composite(),
                schema.mask(),
                schema.resolution(),
                schema.shape(),
            ],
            outputs=[
                io.Conditioning.Output("positive"),
                io.Conditioning.Output("negative", tooltip="The same: with cfg 1 it is not used."),
                io.Latent.Output(
                    "LATENT", tooltip="Empty, of the right size. Pictures with an empty mask are in it and kept."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae: "io.Vae.Type",
        null_text: list,
        composite: torch.Tensor,
        mask: torch.Tensor,
        resolution: int,
        shape: str,
    ) -> io.NodeOutput:
        checks.vae(vae, NODE)
        checks.text(null_text, NODE)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        wanted = resolution or attachments.resolution_of(null_text)
        size = checks.inference_size(composite, wanted, schema.SHAPES[shape])
        latent = running.encode(vae, geometry.resize(composite, size)).mean
        small = geometry.latent_mask(mask, size)
        conditioned = running.condition(null_text, latent, small)
        empty = geometry.is_empty(mask)[:, None, None, None].to(latent.device)
        result = {"samples": torch.where(empty, latent, torch.zeros_like(latent))}
        if empty.any():
            # A sampler leaves alone what its noise mask leaves out.
            result["noise_mask"] = (~empty).float().expand(-1, -1, *size)
        ui = running.warn(NODE, doubts.of_mask(mask) or doubts.of_small_mask(mask, small, size))
        return io.NodeOutput(conditioned, conditioned, result, ui=ui)
