"""The whole flow on diffusers: composite + mask -> latents -> decoded image -> picture, background untouched.

The method is DiffHarmony's (arXiv 2404.06139). Images are float32 [B, 3, H, W] in [0, 1], masks [B, 1, H, W] in [0, 1],
1 = foreground; [-1, 1] exists only right before a VAE. Latents are float32 [B, 4, h, w], scaled (by 0.18215 for SD
1.5).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from . import geometry, recolor, sampling
from .endings import ENDINGS
from .errors import InputError
from .models import Models
from .networks.harmony_vae import Posterior
from .networks.refiner import refine as refine_image
from .sampling import Draws, Noise
from .settings import Settings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass
class Result:
    """harmonized: the decoded image at the inference size, [B, 3, h, w]. refined: the final image at the output size,
    [B, 3, H, W], its background that of the composite. Both float32 in [0, 1]."""

    harmonized: torch.Tensor
    refined: torch.Tensor


class DiffHarmony(Models):
    """The flow through the parts of a checkpoint."""

    @property
    def default_method(self) -> str:
        """ "colors" where there is a colour regressor: it is instant, and better than the small diffusion model."""
        return "diffusion" if self.color_regressor is None else "colors"

    @torch.no_grad()
    def encode(
        self, composite: torch.Tensor, *, noise: torch.Tensor | None = None, decoder: str = "vae"
    ) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] to scaled latents [B, 4, h, w]: the posterior's mean, or the draw that standard normal
        `noise` [B, 4, h, w] makes of it. decoder: see `Settings`."""
        posterior, scale = self._posterior(composite, self._vae(decoder))
        return (posterior.mean if noise is None else posterior.sample(noise)) * scale

    @torch.no_grad()
    def harmonize_latents(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        settings: Settings | None = None,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Stage 1: the scaled latents of the harmonized image, [B, 4, h, w] at the inference size.

        composite: [B, 3, H, W] in [0, 1]; mask: [B, 1, H, W] or [1, 1, H, W]. At most one of these stands in for the
        settings' seed: seeds, one for each picture, each with a generator of its own, so that a picture's noise does
        not depend on its batch; generator, drawn from for the whole batch in the published order: start noise,
        posterior, one per step; noise, the numbers themselves. progress: called with (done, steps + 1).
        """
        settings = settings or Settings()
        composite, mask = geometry.match(composite, mask)
        draws = _draws(range(len(composite)), len(composite), settings, seeds, generator, noise)
        report = _Report(progress, (settings.steps or self.steps) + 1)
        return self._sample(composite, mask, settings, draws, report)

    @torch.no_grad()
    def decode(
        self,
        latents: torch.Tensor,
        composite: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        decoder: str = "vae",
        *,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scaled latents [B, 4, h, w] to an image at the inference size, [B, 3, 8h, 8w] in [0, 1].

        decoder: see `Settings`. The Harmony-VAE takes the composite and the mask (any size; see `harmonize_latents`) as
        its condition: the mean of the condition's posterior, or a draw with `noise` [B, 4, h, w].
        Raises InputError where the result is not finite.
        """
        return self._decode(latents, composite, mask, self._vae(decoder), noise)

    @torch.no_grad()
    def finish(
        self, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: Settings | None = None
    ) -> torch.Tensor:
        """The last stage alone: a decoded image [B, 3, h, w] to the final one at the composite's size, [B, 3, H, W].

        Arguments as for a call, which resizes composite and mask to the output size before this."""
        settings = settings or Settings()
        composite, mask = geometry.match(composite, mask)
        return recolor.mixed(composite, self._finish(harmonized, composite, mask, settings), settings.amounts)

    @torch.no_grad()
    def __call__(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        settings: Settings | None = None,
        *,
        output_size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Harmonizes composites. Arguments as for `harmonize_latents`, and:

        output_size: (height, width) of the result, to which composite and mask are resized first; None: the composite's
        own. The Harmony-VAE draws one more time, last. progress: called with (done, steps + 3).

        Where the mask is 0 the result is bit for bit the (resized) composite, unless the settings say otherwise. A
        frame whose mask is empty, nowhere >= 0.5, comes back whole, and no network runs for it. Raises InputError for
        sizes that differ, for a part that the checkpoint lacks and for NaN in what the weights make.
        """
        settings = settings or Settings()
        method = settings.method or self.default_method
        if method != "diffusion":
            self._need("color_regressor")
        if method == "colors":
            return self._recolored(composite, mask, output_size, settings, progress)
        if ENDINGS[settings.ending].refines:
            self._need("refiner")
        composite, mask = geometry.match(composite, mask)
        keep = (~geometry.is_empty(mask)).nonzero().flatten().tolist()
        draws = _draws(keep, len(composite), settings, seeds, generator, noise)
        report = _Report(progress, (settings.steps or self.steps) + 3)
        target = original = geometry.resize(composite.float(), output_size or composite.shape[-2:])
        if method == "both":
            local = recolor.Amounts(local=settings.amounts.local)
            composite, change = recolor.harmonize(self._need("color_regressor"), composite.float(), mask, local)
            target = recolor.apply(target, geometry.resize(mask.float(), target.shape[-2:]), change, local)
        result = Result(geometry.resize(composite.float(), self._size(composite, settings)).clone(), original.clone())
        if not keep:
            report(report.total)
            return result
        chosen, chosen_mask = (composite, mask) if len(keep) == len(composite) else (composite[keep], mask[keep])
        latents = self._sample(chosen, chosen_mask, settings, draws, report)
        vae = self._vae(settings.decoder)
        fresh = draws("condition", latents.shape[1:]) if vae == "harmony_vae" else None
        harmonized = self._decode(latents, chosen, chosen_mask, vae, fresh).to(composite.device)
        report(1)
        chosen_mask = geometry.resize(chosen_mask.float(), target.shape[-2:])
        refined = self._finish(harmonized, target[keep], chosen_mask, settings)
        result.refined[keep] = recolor.mixed(original[keep], refined, settings.amounts)
        result.harmonized[keep] = harmonized
        report(1)
        return result

    def _recolored(
        self,
        composite: torch.Tensor,
        mask: torch.Tensor,
        output_size: tuple[int, int] | None,
        settings: Settings,
        progress: Progress | None,
    ) -> Result:
        """The method "colors": both of the result's pictures are the same."""
        composite, mask = geometry.match(composite, mask)
        change = recolor.predict(self._need("color_regressor"), composite.float(), mask)
        target = geometry.resize(composite.float(), output_size or composite.shape[-2:])
        shown = geometry.resize(mask.float(), target.shape[-2:]) * (~geometry.is_empty(mask))[:, None, None, None]
        refined = recolor.apply(target, shown, change, settings.amounts, settings.feather)
        _Report(progress, 1)(1)
        return Result(refined, refined)

    def _sample(
        self, composite: torch.Tensor, mask: torch.Tensor, settings: Settings, draws: Draws, report: "_Report"
    ) -> torch.Tensor:
        """Stage 1, from the composite to scaled latents."""
        unet, null_text, vae = self._need("unet"), self._need("null_text"), self._vae(settings.decoder)
        size, factor = self._size(composite, settings), self._factor(vae)
        small_mask = geometry.latent_mask(mask.float(), size, factor).to(self.device)
        if not small_mask.flatten(1).any(dim=1).all():
            logger.warning("A foreground is too small to be seen at %dx%d; use a higher resolution.", size[1], size[0])

        start = draws("initial", (unet.config.out_channels, size[0] // factor, size[1] // factor)).to(self.device)
        posterior, scale = self._posterior(geometry.resize(composite, size), vae)
        latent = posterior.sample(draws("posterior", posterior.mean.shape[1:])) * scale
        condition = torch.cat([small_mask, latent], dim=1)
        text = null_text.to(self.device, unet.dtype).expand(len(latent), -1, -1)
        report(1)

        def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = torch.cat([x, condition], dim=1).to(unet.dtype)
            output = unet(x, timestep, encoder_hidden_states=text, return_dict=False)[0]
            report(1)
            return output

        steps = settings.steps or self.steps
        latents = sampling.sample(predict, start, steps, settings.sampler, self.prediction_type, draws)
        self._finite(latents, "latents")
        return latents

    def _vae(self, decoder: str) -> str:
        """The name of the part that encodes and decodes, which is there."""
        if decoder == "vae" and self.vae is None and self.harmony_vae is not None:
            return "harmony_vae"
        self._need(decoder)
        return decoder

    def _posterior(self, image: torch.Tensor, part: str) -> tuple[Posterior, float]:
        """The posterior of an image in [0, 1] over unscaled latents, and the latents' scale."""
        vae = self._need(part)
        image = image.to(self.device, torch.float32) * 2 - 1
        if part == "harmony_vae":
            return vae.encode(image), vae.scaling_factor
        moments = vae.encode(image.to(vae.dtype)).latent_dist.parameters
        return Posterior.from_moments(moments), vae.config.scaling_factor

    def _decode(
        self,
        latents: torch.Tensor,
        composite: torch.Tensor | None,
        mask: torch.Tensor | None,
        part: str,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        vae = self._need(part)
        latents = latents.to(self.device, torch.float32)
        if part == "harmony_vae":
            if composite is None or mask is None:
                raise InputError("The Harmony-VAE decodes with the composite and its mask as condition; give both.")
            composite, mask = geometry.match(composite, mask)
            size = [side * vae.factor for side in latents.shape[-2:]]
            composite = geometry.resize(composite.float(), size).to(self.device) * 2 - 1
            mask = geometry.binarize(geometry.resize(mask.float(), size)).to(self.device)
            condition = vae.encode_condition(composite, mask)
            drawn = None if noise is None else condition.posterior.sample(noise)
            image = vae.decode(latents / vae.scaling_factor, condition, drawn)
        else:
            image = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        self._finite(image, "decoded image")
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def _finish(
        self, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: Settings
    ) -> torch.Tensor:
        """From the decoded image at the inference size to the final one at the composite's."""
        return ENDINGS[settings.ending].finish(harmonized, composite, mask, settings, self._refine)

    def _refine(self, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inputs = (tensor.to(self.device) for tensor in (harmonized, composite, mask))
        refined = refine_image(self._need("refiner"), *inputs).to(composite.device)
        self._finite(refined, "refined image")
        return refined

    def _size(self, composite: torch.Tensor, settings: Settings) -> tuple[int, int]:
        height, width = composite.shape[-2:]
        return geometry.inference_size(height, width, settings.resolution or self.resolution, settings.shape)

    def _factor(self, part: str) -> int:
        vae = self._need(part)
        return vae.factor if part == "harmony_vae" else 2 ** (len(vae.config.block_out_channels) - 1)


class _Report:
    """Counts for a progress callback, which may be None."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


def _draws(
    keep: Sequence[int],
    batch: int,
    settings: Settings,
    seeds: Sequence[int] | None,
    generator: torch.Generator | None,
    noise: Noise | None,
) -> Draws:
    """The numbers of the pictures `keep` of a batch."""
    if seeds is None and generator is None and noise is None:
        seeds = [(settings.seed + index) % 2**64 for index in range(batch)]
    return Draws(batch, keep, seeds, generator, noise)
