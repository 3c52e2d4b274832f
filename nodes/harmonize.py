"""Stage 1: a composite and its mask to the harmonized latent (DiffHarmony, arXiv 2404.06139)."""

import torch
from comfy_api.latest import io

from ..diffharmony_models import geometry
from ..diffharmony_models.sampling import seeded
from . import checks
from .host import running as host

SHAPES = {"keep proportions": "keep", "square": "square"}
NODE = "HarmonizeLatent"


class HarmonizeLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Harmonize Latent",
            category="DiffHarmony",
            description="Gives a pasted foreground the light and colours of the picture it stands in. Decode with "
            "VAEDecodeHigherRes.",
            search_aliases=[
                "image harmonization",
                "harmonize",
                "relight",
                "match colors",
                "composite",
                "blend foreground",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL of LoadDiffHarmony; LoRA and other model nodes may stand between."
                ),
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
                seed_input(),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip=(
                        "Sampling steps. 0: as many as the checkpoint was made for (5 for the published one, 2 for the "
                        "bundled). More take longer and are seldom better."
                    ),
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=host.SAMPLERS,
                    default="euler_ancestral",
                    tooltip="euler_ancestral is the published one. euler draws no noise on the way.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=host.SCHEDULERS,
                    default="normal",
                    tooltip="normal has exactly the published noise levels; others lead to other results.",
                ),
                resolution_input(),
                shape_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The composite already as LATENT, straight from a sampler: it is used as it is, without "
                    "encoding, at its own size (resolution and shape are then not asked).",
                ),
                io.Boolean.Input(
                    "fixed_noise",
                    default=False,
                    optional=True,
                    tooltip="On: every picture of the batch gets the same noise, which keeps the frames of a video "
                    "alike. Off: picture n gets that of seed + n.",
                ),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="For VAEDecodeHigherRes, or on into another SD 1.5 sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: "io.Model.Type",
        vae: "io.Vae.Type",
        null_text: list,
        composite: torch.Tensor,
        mask: torch.Tensor,
        seed: int,
        steps: int,
        sampler_name: str,
        scheduler: str,
        resolution: int,
        shape: str,
        latent: dict | None = None,
        fixed_noise: bool = False,
    ) -> io.NodeOutput:
        host.check_model(model, NODE)
        host.check_vae(vae, NODE)
        host.check_text(null_text, NODE, model)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        size = inference_size(composite, resolution or host.resolution_of(null_text, model), shape)
        if latent is not None:
            given = composite_latent(latent, composite)
            size = latent_size(given)

        count = len(composite)
        seeds = [(seed if fixed_noise else seed + index) % 2**64 for index in range(count)]
        keep = (~geometry.is_empty(mask)).nonzero().flatten().tolist()
        posterior = None if latent is not None else host.encode(vae, geometry.resize(composite, size))
        clean = given if posterior is None else posterior.mean
        if not keep:
            return io.NodeOutput({"samples": clean.clone()}, ui=host.warn(NODE, checks.doubts(mask)))

        # The published order: start noise, posterior, one for each step.
        seeds = [seeds[index] for index in keep]
        draw = seeded(seeds)
        noise, spread = draw(clean.shape[1:]), draw(clean.shape[1:])
        seen = clean[keep]
        if posterior is not None:
            seen = seen + posterior.std[keep] * spread.to(seen)
        small, lost = small_mask(mask[keep], size)
        positive = host.condition(null_text, seen, small)
        ui = host.warn(NODE, host.doubts_of_vae(model, vae) + (checks.doubts(mask) or lost))
        steps = steps or host.steps_of(model)
        samples = host.sample(model, positive, noise, draw, seeds, steps, sampler_name, scheduler)
        if not torch.isfinite(samples).all():
            raise ValueError(
                f"{NODE}: the result holds NaN. The weights are broken, or their precision is too narrow: choose "
                "weight_dtype fp32 in LoadDiffHarmony, and start ComfyUI with --fp32-vae where that is not enough."
            )
        result = clean.to(samples, copy=True)
        result[keep] = samples
        return io.NodeOutput({"samples": result}, ui=ui)


def composite_input() -> io.Image.Input:
    return io.Image.Input(
        "composite",
        tooltip=(
            "The picture with the foreground pasted in. For the bundled checkpoint, best as HarmonizeColors gives it; "
            "for the published one as it is."
        ),
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Another seed gives a slightly different result. The noise is drawn on the CPU: the same on every "
        "machine.",
    )


def resolution_input() -> io.Int.Input:
    return io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=8192,
        step=64,
        tooltip="Where the model works: side in pixels of a square of the same area. 0: what the checkpoint was made "
        "for (1024 for the published one). Higher keeps more detail and takes longer.",
    )


def shape_input() -> io.Combo.Input:
    return io.Combo.Input(
        "shape",
        options=list(SHAPES),
        default="keep proportions",
        tooltip="keep proportions: sides rounded to 64 pixels. square: squashed to resolution x resolution, as in the "
        "paper.",
    )


def inference_size(composite: torch.Tensor, resolution: int, shape: str) -> tuple[int, int]:
    """(height, width) at which stage 1 works. ValueError for settings and pictures that cannot be."""
    size = composite.shape[-2:]
    height, width = geometry.inference_size(size[0], size[1], resolution, SHAPES[shape])
    if height * width > 4 * resolution**2:
        raise ValueError(
            f"The composite is {checks.size(composite)}, too long and thin for resolution {resolution}. Crop it around "
            'the foreground, or choose shape "square".'
        )
    return height, width


def latent_size(samples: torch.Tensor) -> tuple[int, int]:
    """(height, width) in pixels of what these latents decode to."""
    height, width = samples.shape[-2:]
    return height * geometry.LATENT, width * geometry.LATENT


def composite_latent(latent: dict, composite: torch.Tensor) -> torch.Tensor:
    """The samples of the composite as LATENT, one for each composite. ValueError where they do not belong together."""
    samples = checks.latent(latent, "latent", NODE)
    if samples.shape[0] not in (1, composite.shape[0]):
        raise ValueError(
            f"{NODE}: {composite.shape[0]} composites came with {samples.shape[0]} latents. Give one for each."
        )
    advice = "Wire the LATENT that the composite was decoded from, or none."
    checks.same_view(latent_size(samples), composite, f"{NODE}: the latent", advice)
    return samples.float().expand(composite.shape[0], -1, -1, -1)


def small_mask(mask: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, list[str]]:
    """[B, 1, H, W] as the UNet sees it, at 1/8 of `size`; and what to say of a foreground that is lost on the way."""
    small = geometry.latent_mask(mask, size)
    if not (geometry.is_empty(small) & ~geometry.is_empty(mask)).any():
        return small, []
    return small, [f"A foreground is too small to be seen at {size[1]}x{size[0]}; use a higher resolution."]
