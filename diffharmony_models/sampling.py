"""The noise of a run and the samplers: Euler and Euler ancestral (Karras et al. 2022, arXiv 2206.00364; k-diffusion).

Everything here is float32, whatever the UNet computes in. x is a noisy latent with noise level sigma:
x = x0 + sigma * n.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .errors import InputError

SAMPLERS = ("euler_ancestral", "euler")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


Noise = Callable[[Sequence[int]], torch.Tensor]
"""A source of standard normal numbers: the shape of one picture's, without the batch, to [B, *shape] float32, new ones
with each call. They are asked for in the published order: start, posterior, one a step, the Harmony-VAE's condition."""


@dataclass
class Posterior:
    """A diagonal Gaussian over unscaled latents: mean and std, [B, 4, h, w] float32."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def from_moments(cls, moments: torch.Tensor) -> "Posterior":
        """moments: mean and logarithm of the variance, [B, 8, h, w], as a VAE's encoder gives them."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + std * noise; noise as mean, standard normal."""
        return self.mean + self.std * noise.to(self.mean)


def seeded(seeds: Sequence[int]) -> Noise:
    """Noise from one seed a picture, each with a generator of its own, so that a picture's numbers do not depend on its
    batch. On the CPU whatever the device, so that a seed means the same noise everywhere."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda shape: torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def schedule(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The method's timesteps [steps] and noise levels sigma [steps + 1], float32, the last sigma 0.

    beta scaled linear from 0.00085 to 0.012 over 1000 steps; timesteps evenly spaced from 999 to 0, sigmas interpolated
    between whole timesteps. One step starts at 999. Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise InputError(f"Sampling takes at least 1 step, not {steps}.")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    table = ((1 - alphas) / alphas).sqrt().double()
    timesteps = torch.linspace(999, 0, steps, dtype=torch.float64)
    low = timesteps.floor().long().clamp(max=998)
    sigmas = torch.lerp(table[low], table[low + 1], timesteps - low)
    return timesteps.float(), torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def denoised(x: torch.Tensor, output: torch.Tensor, sigma: float, prediction_type: str) -> torch.Tensor:
    """The clean latent that a network's output stands for. output: the noise ("epsilon"), v of Salimans & Ho 2022
    (arXiv 2202.00512) for the input x / sqrt(sigma² + 1), or the clean latent itself ("sample")."""
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return x - sigma * output
    return x / (sigma**2 + 1) - output * (sigma / (sigma**2 + 1) ** 0.5)


def sample(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    steps: int,
    sampler: str,
    prediction_type: str,
    noise: Noise,
) -> torch.Tensor:
    """Runs a sampler from pure noise, start [B, 4, h, w], to clean latents of that shape.

    network: (noisy latent scaled to variance one, timestep) -> prediction; one call a step. sampler: of `SAMPLERS`.
    Numbers are drawn once a step, by "euler" too, which does not use them: such is the published order.
    """
    if sampler not in SAMPLERS:
        raise InputError(f'Unknown sampler "{sampler}"; expected one of {", ".join(SAMPLERS)}.')
    ancestral = sampler == "euler_ancestral"
    timesteps, sigmas = schedule(steps)
    sigmas = sigmas.tolist()
    x = start * sigmas[0]
    for timestep, sigma, following in zip(timesteps.to(start.device), sigmas, sigmas[1:]):
        output = network(x / (sigma**2 + 1) ** 0.5, timestep).float()
        up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5 if ancestral else 0.0
        down = (following**2 - up**2) ** 0.5
        x = x + (x - denoised(x, output, sigma, prediction_type)) / sigma * (down - sigma)
        fresh = noise(x.shape[1:])
        x = x + fresh.to(x) * up if up else x
    return x
