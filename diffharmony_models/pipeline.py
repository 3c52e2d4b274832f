"""The whole flow on diffusers: composite + mask -> latents -> decoded image -> picture, background untouched.

The method is DiffHarmony's (arXiv 2404.06139). Images are float32 [B, 3, H, W] in [0, 1], masks [B, 1, H, W] in [0, 1],
1 = foreground; [-1, 1] exists only right before a VAE. Latents are float32 [B, 4, h, w], scaled (by 0.18215 for SD
1.5).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import checkpoint as checkpoints
from . import geometry, recolor, sampling
from .errors import InputError
from .networks.harmony_vae import Posterior
from .networks.refiner import refine as refine_image
from .sampling import PREDICTIONS, Draws, Noise, randn

logger = logging.getLogger(__name__)

ENDINGS = ("transfer", "paper")
METHODS = ("colors", "diffusion", "both")
Progress = Callable[[int, int], None]

_HOW = {
    "unet": ("UNet", "Read a whole pipeline folder or a one-file checkpoint, or train one with `train-harmonizer`."),
    "vae": ("VAE", "Read a whole pipeline folder or a one-file checkpoint, or train one with `train-autoencoder`."),
    "null_text": (
        "null text",
        "Read a folder that has text_encoder/ (SD 1.5's), or `convert` one that has it to one file.",
    ),
    "refiner": (
        "refiner",
        "Leave it out (refine=False, `--no-refine`), train one with `train-refiner`, or put the published refinement/ "
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


@dataclass
class Result:
    """harmonized: the decoded image at the inference size, [B, 3, h, w]. refined: the final image at the output size,
    [B, 3, H, W], its background that of the composite. Both float32 in [0, 1]."""

    harmonized: torch.Tensor
    refined: torch.Tensor


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device computes in it natively; else float16 on CUDA and float32 anywhere else."""
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        # Private in torch and absent from older ones: where they cannot be asked, float32 is right anyway.
        checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        if any(check is not None and check() for check in checks):
            return torch.bfloat16
    return torch.float32


class DiffHarmony:
    """The parts of a checkpoint, and the flow through them. Parts may be missing; what needs one says so.

    unet: diffusers UNet2DConditionModel with 9 input channels. vae: AutoencoderKL. refiner: `Refiner`. harmony_vae:
    `HarmonyVAE`. color_regressor: `ColorRegressor`. null_text: [tokens, width]. All parts on one device.
    prediction_type: what the UNet predicts, of `sampling.PREDICTIONS`. resolution, in pixels, and steps: the
    checkpoint's own, taken where a call says 0.
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
        checkpoint: "checkpoints.Checkpoint",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "DiffHarmony":
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

    def encode(
        self,
        composite: torch.Tensor,
        *,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
        sample: bool = False,
        harmony_vae: bool = False,
    ) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] to scaled latents [B, 4, h, w], at `size` (height, width; None: as it is).

        The posterior's mean; with `noise` [B, 4, h, w], with `generator` or with sample=True a draw from it.
        harmony_vae: by the Harmony-VAE's own encoder.
        """
        with _inference() as out:
            posterior, scale = self._posterior(geometry.resize(composite, size or composite.shape[-2:]), harmony_vae)
            if noise is None and (sample or generator is not None):
                noise = randn(posterior.mean.shape, generator)
            out.append((posterior.mean if noise is None else posterior.sample(noise)) * scale)
        return out[0]

    def harmonize_latents(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        *,
        resolution: int = 0,
        shape: str = "keep",
        steps: int = 0,
        sampler: str = "euler_ancestral",
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        harmony_vae: bool = False,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Stage 1: the scaled latents of the harmonized image, [B, 4, h, w] at the inference size.

        composite: [B, 3, H, W] in [0, 1]; mask: [B, 1, H, W] or [1, 1, H, W]. resolution, shape: see
        `geometry.inference_size`; resolution 0 and steps 0 are the checkpoint's own. At most one of:
        seeds: one for each picture (an int: the same for all), each with a generator of its own, so that a picture's
        noise does not depend on its batch (default: 0). generator: drawn from for the whole batch in the published
        order: start noise, posterior, one per step. noise: the numbers themselves.
        harmony_vae: encode by the Harmony-VAE, as it must be where it decodes. progress: called with (done, steps + 1).
        """
        with _inference() as out:
            composite, mask = geometry.match(composite, mask)
            draws = Draws(len(composite), range(len(composite)), seeds, generator, noise)
            size = self._size(composite, resolution, shape)
            steps = steps or self.steps
            report = _Report(progress, steps + 1)
            out.append(self._sample(composite, mask, size, steps, sampler, draws, harmony_vae, report))
        return out[0]

    def decode(
        self,
        latents: torch.Tensor,
        composite: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        harmony_vae: bool = False,
        *,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scaled latents [B, 4, h, w] to an image at the inference size, [B, 3, 8h, 8w] in [0, 1].

        harmony_vae: by the Harmony-VAE, which takes the composite and the mask (any size; see `harmonize_latents`) as
        its condition: the mean of the condition's posterior, or a draw with `noise` [B, 4, h, w] or `generator`.
        Raises ValueError where the result is not finite.
        """
        with _inference() as out:
            draw = None
            if noise is not None or generator is not None:
                draw = lambda shape: randn(shape, generator) if noise is None else noise  # noqa: E731
            out.append(self._decode(latents, composite, mask, harmony_vae, draw))
        return out[0]

    def finish(
        self,
        harmonized: torch.Tensor,
        composite: torch.Tensor,
        mask: torch.Tensor,
        *,
        ending: str = "transfer",
        refine: bool = True,
        feather: int = 0,
    ) -> torch.Tensor:
        """The last stage alone: a decoded image [B, 3, h, w] to the final one at the composite's size, [B, 3, H, W].

        Arguments as for a call, which resizes composite and mask to the output size before this."""
        with _inference() as out:
            out.append(self._finish(harmonized, *geometry.match(composite, mask), ending, refine, feather))
        return out[0]

    def __call__(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        *,
        method: str | None = None,
        amounts: recolor.Amounts | None = None,
        resolution: int = 0,
        shape: str = "keep",
        steps: int = 0,
        sampler: str = "euler_ancestral",
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        output_size: tuple[int, int] | None = None,
        ending: str = "transfer",
        refine: bool = True,
        feather: int = 0,
        harmony_vae: bool | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Harmonizes composites. Arguments as for `harmonize_latents`, and:

        method: "colors", the colour regressor alone, at the output size; "diffusion", the paper's stages; "both", the
        stages on what the regressor has made of the composite; None: `default_method`. amounts: how much of the change
        is made.
        output_size: (height, width) of the result, to which composite and mask are resized first; None: the composite's
        own. ending: "transfer" carries the colours to the composite's own pixels; "paper" scales the decoded image to
        the output size and refines it there. refine: run the refiner, for "paper"; "transfer" reads the colours, and
        how noisy they are, from the decoded image itself.
        feather: pixels by which a hard mask's edge is softened inwards. harmony_vae: encode and decode by the
        Harmony-VAE (one more draw, the last); None: "transfer" does where there is one, "paper" only where there is no
        other VAE, for its figures are the plain one's. progress: called with (done, steps + 3).

        Where the mask is 0 the result is bit for bit the (resized) composite. A frame whose mask is empty, nowhere >=
        0.5, comes back whole, and no network runs for it. Raises ValueError for sizes that differ, for a part that the
        checkpoint lacks and for NaN in what the weights make.
        """
        method, amounts = method or self.default_method, amounts or recolor.Amounts()
        if method not in METHODS:
            raise InputError(f'Unknown method "{method}"; expected one of {", ".join(METHODS)}.')
        if method != "diffusion":
            self._need("color_regressor")
        if method == "colors":
            return self._recolored(composite, mask, output_size, amounts, feather, progress)
        self._check_ending(ending, refine)
        if harmony_vae is None:
            harmony_vae = self.harmony_vae is not None and (ending == "transfer" or self.vae is None)
        composite, mask = geometry.match(composite, mask)
        size = self._size(composite, resolution, shape)
        keep = (~geometry.is_empty(mask)).nonzero().flatten().tolist()
        draws = Draws(len(composite), keep, seeds, generator, noise)
        steps = steps or self.steps
        report = _Report(progress, steps + 3)
        target = original = geometry.resize(composite.float(), output_size or composite.shape[-2:])
        if method == "both":
            composite, change = recolor.harmonize(self._need("color_regressor"), composite.float(), mask)
            target = recolor.apply(target, geometry.resize(mask.float(), target.shape[-2:]), change)
        result = Result(geometry.resize(composite.float(), size).clone(), original.clone())
        if not keep:
            report(report.total)
            return result
        with torch.inference_mode():
            chosen, chosen_mask = (composite, mask) if len(keep) == len(composite) else (composite[keep], mask[keep])
            latents = self._sample(chosen, chosen_mask, size, steps, sampler, draws, harmony_vae, report)
            draw = lambda shape: draws("condition", shape[1:])  # noqa: E731
            harmonized = self._decode(latents, chosen, chosen_mask, harmony_vae, draw).to(composite.device)
            report(1)
            chosen_mask = geometry.resize(chosen_mask.float(), target.shape[-2:])
            refined = self._finish(harmonized, target[keep], chosen_mask, ending, refine, feather)
            refined = recolor.mixed(original[keep], refined, amounts)
            report(1)
        result.harmonized[keep] = harmonized
        result.refined[keep] = refined
        return result

    @property
    def default_method(self) -> str:
        """ "colors" where there is a colour regressor: it is instant, and better than the small diffusion model."""
        return "diffusion" if self.color_regressor is None else "colors"

    def _recolored(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        output_size: tuple[int, int] | None,
        amounts: recolor.Amounts,
        feather: int,
        progress: Progress | None,
    ) -> Result:
        """The method "colors": both of the result's pictures are the same."""
        composite, mask = geometry.match(composite, mask)
        change = recolor.predict(self._need("color_regressor"), composite.float(), mask)
        target = geometry.resize(composite.float(), output_size or composite.shape[-2:])
        shown = geometry.resize(mask.float(), target.shape[-2:]) * (~geometry.is_empty(mask))[:, None, None, None]
        refined = recolor.apply(target, shown, change, amounts, feather)
        _Report(progress, 1)(1)
        return Result(refined, refined)

    def _sample(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        size: tuple[int, int],
        steps: int,
        sampler: str,
        draws: Draws,
        harmony_vae: bool,
        report: "_Report",
    ) -> torch.Tensor:
        """Stage 1, from the composite to scaled latents."""
        unet, null_text = self._need("unet"), self._need("null_text")
        self._need("harmony_vae" if harmony_vae else "vae")
        factor = self._factor(harmony_vae)
        small_mask = geometry.latent_mask(mask.float(), size, factor).to(self.device)
        if not small_mask.flatten(1).any(dim=1).all():
            logger.warning("A foreground is too small to be seen at %dx%d; use a higher resolution.", size[1], size[0])

        start = draws("initial", (unet.config.out_channels, size[0] // factor, size[1] // factor)).to(self.device)
        posterior, scale = self._posterior(geometry.resize(composite, size), harmony_vae)
        latent = posterior.sample(draws("posterior", posterior.mean.shape[1:])) * scale
        condition = torch.cat([small_mask, latent], dim=1)
        text = null_text.to(self.device, unet.dtype).expand(len(latent), -1, -1)
        report(1)

        def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = torch.cat([x, condition], dim=1).to(unet.dtype)
            output = unet(x, timestep, encoder_hidden_states=text, return_dict=False)[0]
            report(1)
            return output

        latents = sampling.sample(predict, start, steps, sampler, self.prediction_type, draws)
        self._finite(latents, "latents")
        return latents

    def _posterior(self, image: torch.Tensor, harmony_vae: bool) -> tuple[Posterior, float]:
        """The posterior of an image in [0, 1] over unscaled latents, and the latents' scale."""
        vae = self._need("harmony_vae" if harmony_vae else "vae")
        image = image.to(self.device, torch.float32) * 2 - 1
        if harmony_vae:
            return vae.encode(image), vae.scaling_factor
        moments = vae.encode(image.to(vae.dtype)).latent_dist.parameters
        return Posterior.from_moments(moments), vae.config.scaling_factor

    def _decode(
        self,
        latents: torch.Tensor,
        composite: torch.Tensor | None,
        mask: torch.Tensor | None,
        harmony_vae: bool,
        draw: Callable | None,
    ) -> torch.Tensor:
        vae = self._need("harmony_vae" if harmony_vae else "vae")
        latents = latents.to(self.device, torch.float32)
        if harmony_vae:
            if composite is None or mask is None:
                raise InputError("The Harmony-VAE decodes with the composite and its mask as condition; give both.")
            composite, mask = geometry.match(composite, mask)
            size = [side * vae.factor for side in latents.shape[-2:]]
            composite = geometry.resize(composite.float(), size).to(self.device) * 2 - 1
            mask = geometry.binarize(geometry.resize(mask.float(), size)).to(self.device)
            condition = vae.encode_condition(composite, mask)
            drawn = None if draw is None else condition.posterior.sample(draw(latents.shape))
            image = vae.decode(latents / vae.scaling_factor, condition, drawn)
        else:
            image = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        self._finite(image, "decoded image")
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def _finish(
        self,
        harmonized: torch.Tensor,
        composite: torch.Tensor,
        mask: torch.Tensor,
        ending: str,
        refine: bool,
        feather: int,
    ) -> torch.Tensor:
        """From the decoded image at the inference size to the final one at the composite's."""
        self._check_ending(ending, refine)
        if ending == "transfer":
            from .transfer import transfer

            return transfer(harmonized, composite, mask, feather=feather)
        harmonized = geometry.resize(harmonized, composite.shape[-2:])
        if refine:
            inputs = (tensor.to(self.device) for tensor in (harmonized, composite, mask))
            harmonized = refine_image(self._need("refiner"), *inputs).to(composite.device)
            self._finite(harmonized, "refined image")
        return geometry.paste(harmonized, composite, mask, feather)

    def _check_ending(self, ending: str, refine: bool) -> None:
        if ending not in ENDINGS:
            raise InputError(f'Unknown ending "{ending}"; expected one of {", ".join(ENDINGS)}.')
        if refine and ending == "paper":
            self._need("refiner")

    def _size(self, composite: torch.Tensor, resolution: int, shape: str) -> tuple[int, int]:
        height, width = composite.shape[-2:]
        return geometry.inference_size(height, width, resolution or self.resolution, shape)

    def _factor(self, harmony_vae: bool) -> int:
        if harmony_vae:
            return self._need("harmony_vae").factor
        return 2 ** (len(self._need("vae").config.block_out_channels) - 1)

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


class _Report:
    """Counts for a progress callback, which may be None."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


@contextmanager
def _inference() -> Iterator[list[torch.Tensor]]:
    """Inference mode; what is put into the list comes out as ordinary tensors, which a training may go on with."""
    out: list[torch.Tensor] = []
    with torch.inference_mode():
        yield out
    out[:] = [tensor.clone() for tensor in out]
