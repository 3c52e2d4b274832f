"""Stage 1 for the host's own sampler nodes: the composite and its mask as conditioning."""

import torch
from comfy_api.latest import io

from ..diffharmony_models import geometry
from . import checks
from .harmonize import composite_input, inference_size, resolution_input, shape_input, small_mask
from .host import running as host

NODE = "DiffHarmonyConditioning"


class DiffHarmonyConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="DiffHarmony Conditioning",
            category="DiffHarmony",
            description=(
                "Harmonizing with any sampler node instead of HarmonizeLatent: KSampler with cfg 1, denoise 1, "
                "euler_ancestral, normal and the checkpoint's own steps (5 for the published one, 2 for the bundled) "
                "is the published method."
            ),
            search_aliases=["image harmonization", "harmonize", "ksampler harmonization"],
            inputs=[
                io.Vae.Input(
                    "vae", tooltip="The VAE of LoadDiffHarmony. For the published weights any SD 1.5 VAE works too."
                ),
                io.Conditioning.Input("null_text", tooltip="The null_text of LoadDiffHarmony."),
                composite_input(),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the foreground is. One for all pictures, or one for each; of the composite's size "
                    "or proportions.",
                ),
                resolution_input(),
                shape_input(),
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
        host.check_vae(vae, NODE)
        host.check_text(null_text, NODE)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        size = inference_size(composite, resolution or host.resolution_of(null_text), shape)
        latent = host.encode(vae, geometry.resize(composite, size)).mean
        small, lost = small_mask(mask, size)
        conditioned = host.condition(null_text, latent, small)
        empty = geometry.is_empty(mask)[:, None, None, None].to(latent.device)
        result = {"samples": torch.where(empty, latent, torch.zeros_like(latent))}
        if empty.any():
            # A sampler leaves alone what its noise mask leaves out.
            result["noise_mask"] = (~empty).float().expand(-1, -1, *size)
        return io.NodeOutput(conditioned, conditioned, result, ui=host.warn(NODE, checks.doubts(mask) or lost))
