"""Stage 1: a composite and its mask to the harmonized latent (DiffHarmony, arXiv 2404.06139)."""

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import geometry
from ..diffharmony_models.sampling import seeded
from . import checks, doubts, schema
from .host import attachments, running, sampling

NODE = "HarmonizeLatent"


class HarmonizeLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Harmonize Latent",
            category=schema.CATEGORY,
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
                schema.vae(),
                schema.null_text(),
                schema.sampled_composite(),
                schema.mask(),
                schema.seed(),
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
                    options=sampling.SAMPLERS,
                    default="euler_ancestral",
                    advanced=True,
                    tooltip="euler_ancestral is the published one. euler draws no noise on the way.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=sampling.SCHEDULERS,
                    default="normal",
                    advanced=True,
                    tooltip="normal has exactly the published noise levels; others lead to other results.",
                ),
                schema.resolution(),
                schema.shape(),
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
                    advanced=True,
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
        checks.model(model, NODE)
        checks.vae(vae, NODE)
        checks.text(null_text, NODE, model)
        composite = checks.image(composite, "composite", NODE)
        mask = checks.mask(mask, composite, NODE)
        wanted = resolution or attachments.resolution_of(null_text, model)
        size = checks.inference_size(composite, wanted, schema.SHAPES[shape])
        if latent is not None:
            given = checks.composite_latent(latent, composite, NODE)
            size = checks.decoded_size(given)

        count = len(composite)
        seeds = [(seed if fixed_noise else seed + index) % 2**64 for index in range(count)]
        keep = (~geometry.is_empty(mask)).nonzero().flatten().tolist()
        posterior = None if latent is not None else running.encode(vae, geometry.resize(composite, size))
        clean = given if posterior is None else posterior.mean
        if not keep:
            return io.NodeOutput({"samples": clean.clone()}, ui=running.warn(NODE, doubts.of_mask(mask)))

        # The published order: start noise, posterior, one for each step.
        seeds = [seeds[index] for index in keep]
        draw = seeded(seeds)
        noise, spread = draw(clean.shape[1:]), draw(clean.shape[1:])
        seen = clean[keep]
        if posterior is not None:
            seen = seen + posterior.std[keep] * spread.to(seen)
        small = geometry.latent_mask(mask[keep], size)
        positive = running.condition(null_text, seen, small)
        found = doubts.of_mask(mask) or doubts.of_small_mask(mask[keep], small, size)
        ui = running.warn(NODE, doubts.of_vae(model, vae) + found)
        steps = steps or attachments.steps_of(model)
        samples = sampling.sample(model, positive, noise, draw, seeds, steps, sampler_name, scheduler)
        checks.finite(samples, "the result", NODE)
        result = clean.to(samples, copy=True)
        result[keep] = samples
        return io.NodeOutput({"samples": result}, ui=ui)
