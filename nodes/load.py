"""Loading: a checkpoint to the host's own MODEL, VAE and CONDITIONING, and the refiner."""

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..diffharmony_models import checkpoint as checkpoints
from ..diffharmony_models.checkpoint import folders as checkpoint_folders
from ..diffharmony_models.checkpoint import parts as checkpoint_parts
from . import folders, schema
from .host import folders as host_folders
from .host import loading


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
                    options=folders.names(host_folders.folders()),
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
        return folders.fault(checkpoint, host_folders.folders()) or True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **kwargs: object) -> list | str | None:
        return folders.fingerprint_of(checkpoint, host_folders.folders())

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str, clip: "io.Clip.Type | None" = None) -> io.NodeOutput:
        path = folders.resolve(checkpoint, host_folders.folders())
        # One part after the other, the largest first: no more than one ever lies in memory twice, mapped and loaded.
        found = checkpoints.read(path, parts=("unet",))
        resolution, model, vae = found.resolution, None, None
        if found.unet:
            model = loading.load_unet(found.unet, found.prediction_type, resolution, found.steps, weight_dtype)
        del found
        found = checkpoints.read(path, parts=("vae",))
        if found.vae:
            vae = loading.load_vae(found.vae, weight_dtype)
            if model is not None:
                loading.pair(model, vae, found.vae)
        refiner = checkpoints.read(path, parts=("refiner",)).refiner
        refiner = loading.load_refiner(refiner, weight_dtype) if refiner else None
        null_text = loading.conditioning_of(clip, resolution) if clip is not None else _null_text(path, resolution)
        return io.NodeOutput(model, vae, null_text, refiner)


def _null_text(path: Path, resolution: int) -> list | None:
    """The null text as CONDITIONING; None where there is neither one nor a text encoder."""
    if path.is_file():
        null_text = checkpoints.read(path, parts=("null_text",)).null_text
    else:
        encoder = checkpoint_folders.choose(path, checkpoint_folders.find(path))[0].get("text_encoder")
        if encoder is None:
            return None
        part = checkpoint_parts.load(encoder.kind, encoder.files, encoder.config, encoder.where)
        null_text = loading.null_text_of(checkpoint_parts.settled(part))
    return None if null_text is None else loading.conditioning(null_text, resolution)
