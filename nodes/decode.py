"""Decoding at the resolution of stage 1, above the one wanted, then scaling down: so small detail survives the VAE."""

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import geometry
from . import checks, schema
from .host import running

NODE = "VAEDecodeHigherRes"
METHODS = ("bilinear", "lanczos", "area")


class VAEDecodeHigherRes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="VAE Decode (Higher Resolution)",
            category=schema.CATEGORY,
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
                    advanced=True,
                    tooltip="How the picture is scaled. bilinear is the published one, antialiased; lanczos is "
                    "sharper; area averages.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="Width of the result in pixels. 0: the composite's, or in proportion to the height.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="Height of the result in pixels. 0: the composite's, or in proportion to the width.",
                ),
            ],
            outputs=[io.Image.Output("IMAGE")],
        )

    @classmethod
    def execute(
        cls,
        samples: dict,
        vae: "io.Vae.Type",
        method: str,
        composite: torch.Tensor | None = None,
        width: int = 0,
        height: int = 0,
    ) -> io.NodeOutput:
        checks.vae(vae, NODE)
        latents = checks.latent(samples, "samples", NODE)
        wanted = None if composite is None else checks.image(composite, "composite", NODE)
        if wanted is not None:
            found = checks.decoded_size(latents)
            checks.same_view(found, wanted, f"{NODE}: the decoded picture", "Wire the composite that was harmonized.")
        picture = running.decode(vae, latents)
        checks.finite(picture, "the decoded picture", NODE)
        size = output_size((picture if wanted is None else wanted).shape[-2:], width, height)
        picture = geometry.resize(picture, size) if method == "bilinear" else running.scale(picture, size, method)
        return io.NodeOutput(checks.to_host(picture))


def output_size(natural: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """(height, width) of the result: what is 0 follows the natural size, in proportion to the other."""
    if not width and not height:
        return natural[0], natural[1]
    return (
        height or max(1, round(natural[0] * width / natural[1])),
        width or max(1, round(natural[1] * height / natural[0])),
    )
