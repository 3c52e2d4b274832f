"""Loading: a checkpoint to the host's own MODEL, VAE and CONDITIONING, and the refiner."""

from comfy_api.v0_0_2 import io

from ..diffharmony_models import checkpoint as checkpoints
from . import schema
from .host import folders, loading


class LoadDiffHarmony(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadDiffHarmony",
            display_name="Load DiffHarmony",
            category=schema.CATEGORY,
            description=(
                "Loads a harmonizing checkpoint: one file or a folder of the published weights in models/diffharmony, "
                "or the small one that comes with the nodes. A part that the checkpoint lacks comes out empty."
            ),
            search_aliases=["image harmonization", "harmonize", "load harmonizer", "diffharmony checkpoint"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.names(),
                    default=folders.BUNDLED,
                    tooltip="Files and folders in models/diffharmony. The bundled one is small; the published weights "
                    "do far better.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(loading.WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="Precision of the UNet and the refiner. default: what suits your device. fp16 and bf16 "
                    "halve their memory; fp32 is exact, for the VAE too.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Any SD 1.5 CLIP. Needed only where the checkpoint has no null text of its own (a UNet "
                    "alone); it replaces the checkpoint's.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "MODEL",
                    tooltip="For HarmonizeLatent or any sampler node; LoRA and other model nodes may stand between.",
                ),
                io.Vae.Output("VAE"),
                io.Conditioning.Output("null_text", tooltip="The empty prompt, which the model was trained with."),
                schema.DiffHarmonyRefiner.Output("refiner", tooltip="For RefineResidual."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        return folders.fault(checkpoint) or True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **kwargs: object) -> list | str | None:
        return folders.fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str, clip: "io.Clip.Type | None" = None) -> io.NodeOutput:
        found = checkpoints.Reader(folders.resolve(checkpoint))
        resolution, model, vae = found.resolution, None, None
        # One part after the other, the largest first: no more than one ever lies in memory twice, mapped and loaded.
        if part := found.part("unet"):
            model = loading.load_unet(part, found.prediction_type, resolution, found.steps, weight_dtype)
        del part
        if part := found.part("vae"):
            vae = loading.load_vae(part, weight_dtype)
            if model is not None:
                loading.pair(model, vae, part)
        refiner = loading.load_refiner(part, weight_dtype) if (part := found.part("refiner")) else None
        if clip is not None:
            return io.NodeOutput(model, vae, loading.conditioning_of(clip, resolution), refiner)
        encoder = found.part("text_encoder")
        tokens = loading.null_text_of(encoder) if encoder else found.null_text()
        null_text = None if tokens is None else loading.conditioning(tokens, resolution)
        return io.NodeOutput(model, vae, null_text, refiner)
