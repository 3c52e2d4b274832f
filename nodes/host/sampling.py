"""The host's sampler, with the noise levels and the noise of the published method.

Latents are unscaled, as everywhere in the host; the MODEL's latent format scales them.
"""

import inspect

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...diffharmony_models import sampling

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


class _Published(comfy.model_sampling.ModelSamplingDiscrete):
    """The host's sampling, with the three things that the published one does otherwise: sigmas between whole timesteps
    are interpolated linearly; the timestep of a sigma is interpolated too, not rounded; the first noise is scaled by
    sigma, not by sqrt(1 + sigma²)."""

    def __init__(self, model_config: object = None) -> None:
        super().__init__(model_config)
        self.set_sigmas(sampling.schedule(self.num_timesteps)[1][:-1].flip(0))

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        return super().noise_scaling(sigma, noise, latent_image, False)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        table = self.sigmas
        value = sigma.to(table).clamp(table[0], table[-1])
        low = (torch.searchsorted(table, value.reshape(-1), right=True) - 1).clamp(0, len(table) - 2).view(value.shape)
        return (low + (value - table[low]) / (table[low + 1] - table[low])).to(sigma.device)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        table = self.sigmas
        t = timestep.to(table).clamp(0, len(table) - 1)
        low = t.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], t - low).to(timestep.device)


class _PublishedEpsilon(_Published, comfy.model_sampling.EPS):
    pass


class _PublishedV(_Published, comfy.model_sampling.V_PREDICTION):
    pass


class _PublishedSample(_Published, comfy.model_sampling.X0):
    pass


# By what the UNet predicts.
SAMPLINGS = {"epsilon": _PublishedEpsilon, "v_prediction": _PublishedV, "sample": _PublishedSample}


def sample(
    model: comfy.model_patcher.ModelPatcher,
    positive: list,
    noise: torch.Tensor,
    draw: sampling.Noise,
    seeds: list[int],
    steps: int,
    sampler_name: str,
    scheduler: str,
) -> torch.Tensor:
    """The host's sampler, from pure noise [B, 4, h, w] to unscaled latents.

    What it draws on the way comes from `draw`.
    """
    settings = {"device": model.load_device, "denoise": 1.0, "model_options": model.model_options}
    sigmas = comfy.samplers.KSampler(model, steps, sampler=sampler_name, scheduler=scheduler, **settings).sigmas
    sampler = comfy.samplers.sampler_object(sampler_name)
    if "noise_sampler" in inspect.signature(sampler.sampler_function).parameters:
        if sampler_name.startswith("dpmpp") and "sde" in sampler_name:
            # These ask for noise of overlapping spans, which must agree: a Brownian path for each picture.
            low, high = sigmas[sigmas > 0].min(), sigmas.max()
            fresh = comfy.k_diffusion.sampling.BrownianTreeNoiseSampler(noise, low, high, seed=seeds, cpu=True)
        else:
            fresh = _StepNoise(draw, noise.shape[1:], model.load_device)
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": fresh}
    return comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        sampler,
        sigmas,
        positive,
        positive,
        torch.zeros_like(noise),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seeds[0],
    )


class _StepNoise:
    """A sampler's noise, drawn on the CPU: the same numbers on every device, and for a picture in any batch."""

    def __init__(self, draw: sampling.Noise, shape: torch.Size, device: torch.device):
        self.draw, self.shape, self.device = draw, shape, device

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        return self.draw(self.shape).to(self.device)
