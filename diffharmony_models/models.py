"""The parts of a checkpoint as networks, each of which may be missing."""

from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint as checkpoints
from .devices import default_dtype
from .errors import InputError
from .sampling import PREDICTIONS

if TYPE_CHECKING:
    from typing import Self

_HOW = {
    "unet": ("UNet", "Read a whole pipeline folder or a one-file checkpoint, or train one with `train-harmonizer`."),
    "vae": ("VAE", "Read a whole pipeline folder or a one-file checkpoint, or train one with `train-autoencoder`."),
    "null_text": (
        "null text",
        "Read a folder that has text_encoder/ (SD 1.5's), or `convert` one that has it to one file.",
    ),
    "refiner": (
        "refiner",
        "End without it (ending transfer or none), train one with `train-refiner`, or put the published refinement/ "
        "beside the pipeline's folder; `convert` then makes one file of both.",
    ),
    "color_regressor": (
        "colour regressor",
        'Use the bundled checkpoint, train one with `train-color-regressor`, or harmonize with method "diffusion".',
    ),
    "harmony_vae": (
        "Harmony-VAE",
        "Decode without it, train one with `train-autoencoder`, or put the published condition_vae/ beside the "
        "pipeline's folder; `convert` then makes one file of both.",
    ),
}


class Models:
    """The parts of a checkpoint. Parts may be missing; what needs one says so.

    unet: diffusers UNet2DConditionModel with 9 input channels. vae: AutoencoderKL. refiner: `Refiner`. harmony_vae:
    `HarmonyVAE`. color_regressor: `ColorRegressor`. null_text: [tokens, width]. All parts on one device.
    prediction_type: what the UNet predicts, of `sampling.PREDICTIONS`. resolution, in pixels, and steps: the
    checkpoint's own, taken where the settings say 0.
    """

    def __init__(
        self,
        unet: torch.nn.Module | None = None,
        vae: torch.nn.Module | None = None,
        refiner: torch.nn.Module | None = None,
        harmony_vae: torch.nn.Module | None = None,
        color_regressor: torch.nn.Module | None = None,
        null_text: torch.Tensor | None = None,
        prediction_type: str = "epsilon",
        resolution: int = 1024,
        steps: int = checkpoints.STEPS,
        name: str = "checkpoint",
    ):
        if prediction_type not in PREDICTIONS:
            raise InputError(f'Unknown prediction type "{prediction_type}"; expected one of {", ".join(PREDICTIONS)}.')
        if unet is not None and unet.config.in_channels != 9:
            raise InputError(
                f"The UNet of {name} has {unet.config.in_channels} input channels; harmonization needs 9 (latent 4, "
                "mask 1, composite 4): DiffHarmony's own, or an SD 1.5 inpainting one to train from."
            )
        self.unet, self.vae, self.refiner, self.harmony_vae = unet, vae, refiner, harmony_vae
        self.color_regressor = color_regressor
        self.null_text, self.prediction_type, self.name = null_text, prediction_type, name
        self.resolution, self.steps = resolution, steps

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: checkpoints.Checkpoint,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "Self":
        """Builds every part that the checkpoint has, on `device` in `dtype` (None: `default_dtype(device)`)."""
        dtype = dtype or default_dtype(device)
        parts = {}
        for kind in ("unet", "vae", "refiner", "harmony_vae"):
            part = getattr(checkpoint, kind)
            if part is not None:
                parts[kind] = getattr(checkpoints, f"build_{kind}")(part).to(device, dtype).requires_grad_(False)
        if checkpoint.color_regressor is not None:  # small, and its answers are large numbers in small differences
            colors = checkpoints.build_color_regressor(checkpoint.color_regressor)
            parts["color_regressor"] = colors.to(device, torch.float32).requires_grad_(False)
        settings = ("null_text", "prediction_type", "resolution", "steps", "name")
        return cls(**parts, **{key: getattr(checkpoint, key) for key in settings})

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        for part in (self.unet, self.vae, self.harmony_vae, self.refiner, self.color_regressor):
            if part is not None:
                return next(part.parameters()).device
        return torch.device("cpu")

    def _need(self, part: str) -> Any:
        value = getattr(self, part)
        if value is None:
            name, how = _HOW[part]
            raise InputError(f"{self.name} has no {name}, which this needs. {how}")
        return value

    def _finite(self, tensor: torch.Tensor, what: str) -> None:
        if not torch.isfinite(tensor).all():
            dtypes = {
                str(next(p.parameters()).dtype).removeprefix("torch.") for p in (self.unet, self.vae) if p is not None
            }
            raise InputError(
                f"The {what} made by {self.name} in {'/'.join(sorted(dtypes))} holds NaN or infinite values. "
                "Either the weights are broken (get them anew) or the dtype is too narrow for them "
                "(use dtype float32, `--dtype float32`)."
            )
