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


@dataclass
class Noise:
    """The numbers of one run, to be used instead of a generator's: standard normal, [B, 4, h, w] each.

    steps: [N, B, 4, h, w], one for each step (read by euler_ancestral only). condition: for the Harmony-VAE.
    """

    initial: torch.Tensor
    posterior: torch.Tensor
    steps: torch.Tensor | None = None
    condition: torch.Tensor | None = None


class Draws:
    """Standard normal numbers for the pictures `keep` of a batch, drawn in the order in which they are asked for.

    At most one of: seeds, one for each picture of the batch (an int: the same for all), each with a generator of its
    own, so that a picture's numbers do not depend on its batch; generator, drawn from for the whole batch at once;
    noise, the numbers themselves. With none of them the seed is 0.
    """

    def __init__(
        self,
        batch: int,
        keep: Sequence[int],
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ):
        if sum(source is not None for source in (seeds, generator, noise)) > 1:
            raise InputError("Give at most one of seeds, generator and noise.")
        self.batch, self.keep, self.generator, self.noise = batch, list(keep), generator, noise
        if generator is None and noise is None:
            seeds = [seeds or 0] * batch if seeds is None or isinstance(seeds, int) else list(seeds)
            if len(seeds) != batch:
                raise InputError(f"{batch} images came with {len(seeds)} seeds; give one for each image, or one int.")
            # On the CPU whatever the device, so that a seed means the same noise everywhere.
            self.generators = [torch.Generator().manual_seed(int(seeds[index])) for index in self.keep]

    def __call__(self, kind: str, shape: Sequence[int], step: int | None = None) -> torch.Tensor:
        """[len(keep), *shape]. kind: a field of `Noise`; step: for "steps"."""
        if self.noise is not None:
            given, wanted = getattr(self.noise, kind), (self.batch, *shape)
            if given is not None and step is not None:
                given = given[step] if step < len(given) else None
            if given is None or tuple(given.shape) != wanted:
                found = "nothing" if given is None else str(list(given.shape))
                each = "" if step is None else " for every step"
                raise InputError(f"Noise: {kind} must be {list(wanted)}{each}, not {found}.")
            return given[self.keep]
        if self.generator is not None:
            return randn((self.batch, *shape), self.generator)[self.keep]
        return torch.cat([randn((1, *shape), generator) for generator in self.generators])


def randn(shape: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal numbers, float32, on the generator's device."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device if generator is not None else None)


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
    noise: torch.Tensor,
    steps: int,
    sampler: str,
    prediction_type: str,
    draws: Draws,
) -> torch.Tensor:
    """Runs a sampler from pure noise, [B, 4, h, w], to clean latents of that shape.

    network: (noisy latent scaled to variance one, timestep) -> prediction; one call a step. sampler: of `SAMPLERS`.
    Numbers are drawn once a step, by "euler" too, which does not use them: such is the published order.
    """
    if sampler not in SAMPLERS:
        raise InputError(f'Unknown sampler "{sampler}"; expected one of {", ".join(SAMPLERS)}.')
    ancestral = sampler == "euler_ancestral"
    timesteps, sigmas = schedule(steps)
    sigmas = sigmas.tolist()
    x = noise * sigmas[0]
    for step, (timestep, sigma, following) in enumerate(zip(timesteps.to(noise.device), sigmas, sigmas[1:])):
        output = network(x / (sigma**2 + 1) ** 0.5, timestep).float()
        up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5 if ancestral else 0.0
        down = (following**2 - up**2) ** 0.5
        x = x + (x - denoised(x, output, sigma, prediction_type)) / sigma * (down - sigma)
        if ancestral or draws.noise is None:
            fresh = draws("steps", x.shape[1:], step)
            x = x + fresh.to(x) * up if up else x
    return x
