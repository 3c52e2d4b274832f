"""Decoding at the resolution of stage 1, above the one wanted, then scaling down: small detail survives the VAE that
way.
"""

import torch
from comfy_api.latest import io

from ..diffharmony_models import geometry
from . import host, inputs

NODE = "VAEDecodeHigherRes"
METHODS = ("bilinear", "lanczos", "area")


class VAEDecodeHigherRes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="VAE Decode (Higher Resolution)",
            category="DiffHarmony",
            description="Decodes at the latent's own resolution and scales the picture to the composite's size.",
            search_aliases=["vae decode", "decode and resize", "harmonize decode"],
            inputs=[
                io.Latent.Input("samples", tooltip="The LATENT of HarmonizeLatent."),
                io.Vae.Input("vae", tooltip="The VAE that HarmonizeLatent has."),
                io.Image.Input(
                    "composite",
                    optional=True,
                    tooltip="The result takes its size. Without it, and without width and height, the picture stays as "
                    "it was decoded.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="bilinear",
                    tooltip="How the picture is scaled. bilinear is the published one, antialiased; lanczos is "
                    "sharper; area averages.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Width of the result in pixels. 0: the composite's, or in proportion to the height.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Height of the result in pixels. 0: the composite's, or in proportion to the width.",
                ),
            ],
            outputs=[io.Image.Output("IMAGE")],
        )

    @classmethod
    def execute(cls, samples, vae, method, composite=None, width=0, height=0) -> io.NodeOutput:
        host.check_vae(vae, NODE)
        latents = inputs.latent(samples, "samples", NODE)
        wanted = None if composite is None else inputs.image(composite, "composite", NODE)
        if wanted is not None:
            size = [side * geometry.LATENT for side in latents.shape[-2:]]
            inputs.same_view(size, wanted, f"{NODE}: the decoded picture", "Wire the composite that was harmonized.")
        picture = host.decode(vae, latents)
        if not torch.isfinite(picture).all():
            raise ValueError(
                f"{NODE}: the decoded picture holds NaN. Either the LATENT does already, or the VAE's precision is too "
                "narrow: choose weight_dtype fp32 in LoadDiffHarmony, or start ComfyUI with --fp32-vae."
            )
        size = output_size((picture if wanted is None else wanted).shape[-2:], width, height)
        picture = geometry.resize(picture, size) if method == "bilinear" else host.scale(picture, size, method)
        return io.NodeOutput(inputs.to_host(picture))


def output_size(natural: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """(height, width) of the result: what is 0 follows the natural size, in proportion to the other."""
    if not width and not height:
        return tuple(natural)
    return (
        height or max(1, round(natural[0] * width / natural[1])),
        width or max(1, round(natural[1] * height / natural[0])),
    )
