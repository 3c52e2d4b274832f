"""The losses of stage 1, on latents."""

from collections.abc import Callable

import torch

from .. import sampling

# The weight of the published loss: a small foreground counts more, up to this factor.
LARGEST_WEIGHT = 5.0
# Added under the root of a sample's loss, so that a perfect sample's slope stays finite.
ROOT_FLOOR = 1e-3
# Of the samples that stand on the sampler's own path: at its first step, where the colours are found.
FIRST_SHARE = 0.4
# What the background's error counts on the sampler's path: a UNet from nothing needs some.
BACKGROUND_WEIGHT = 0.3
LAST = 999  # the noisiest timestep

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | slice], torch.Tensor]
"""What the model answers to (x, sigma [B, 1, 1, 1], timesteps [B], which samples of the batch these are)."""


class Objective:
    """As published: the MSE of the prediction over the foreground with `foreground_weight`, at timesteps drawn evenly.

    prediction_type: of `sampling.PREDICTIONS`. null_text: [1, tokens, width] or [tokens, width].
    """

    background_weight = 0.0

    def __init__(self, prediction_type: str, null_text: torch.Tensor):
        self.prediction_type, self.null_text = prediction_type, null_text
        _, table = sampling.schedule(LAST + 1)
        self.sigmas = table[:-1].flip(0)  # by timestep, 0 to 999

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """batch: "composite", "real" scaled latents [B, 4, h, w], "mask" [B, 1, h, w] in {0, 1}.

        Returns (loss, numbers to log).
        """
        target, mask, device = batch["real"], batch["mask"], batch["real"].device
        condition = torch.cat([mask, batch["composite"]], dim=1)
        text = self.null_text.to(device).expand(len(target), -1, -1)

        def predict(
            x: torch.Tensor, sigma: torch.Tensor, timesteps: torch.Tensor, chosen: torch.Tensor | slice
        ) -> torch.Tensor:
            scaled = torch.cat([x / (sigma**2 + 1).sqrt(), condition[chosen]], dim=1)
            return model(scaled, timesteps, encoder_hidden_states=text[chosen]).sample.float()

        timesteps, start = self.starts(predict, target, generator)
        sigma = self.sigma(timesteps)[:, None, None, None]
        x = start + sigma * torch.randn(target.shape, generator=generator, device=device)
        prediction = predict(x, sigma, timesteps, slice(None))
        wanted = {
            "epsilon": lambda: (x - target) / sigma,
            "v_prediction": lambda: (x / (sigma**2 + 1) - target) * (sigma**2 + 1).sqrt() / sigma,
            "sample": lambda: target,
        }[self.prediction_type]()
        error = (prediction - wanted).square() * (mask + self.background_weight * (1 - mask))
        each = self.counted(error.mean(dim=(1, 2, 3)) * foreground_weight(mask))
        with torch.no_grad():
            area = 4 * mask.sum(dim=(1, 2, 3)).clamp(min=1)
            estimate = sampling.denoised(x, prediction, sigma, self.prediction_type)
            after = (mask * (estimate - target)).square().sum(dim=(1, 2, 3)) / area
            before = (mask * (batch["composite"] - target)).square().sum(dim=(1, 2, 3)) / area
        return each.mean(), {"error": after.mean(), "error_of_condition": before.mean()}

    def starts(
        self, predict: Predict, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps [B], and the latents [B, 4, h, w] to which their noise is added."""
        drawn = torch.rand(len(target), generator=generator, device=target.device)
        return (drawn * (LAST + 1)).floor(), target

    def counted(self, each: torch.Tensor) -> torch.Tensor:
        """What each sample's error [B] counts in the loss."""
        return each

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels for timesteps in [0, 999], interpolated between whole ones."""
        table = self.sigmas.to(timesteps.device)
        low = timesteps.floor().long().clamp(max=LAST - 1)
        return torch.lerp(table[low], table[low + 1], timesteps - low)


class SamplerObjective(Objective):
    """Training where the sampler goes: x = x̂0 + sigma * noise with x̂0 the model's first estimate from pure noise.

    Such an x carries no information about the target, so the best answer is the mean of what the picture may have been,
    not one draw of it. The root of each sample's error is taken, so that the few pairs that nobody could guess do not
    rule the loss.
    """

    background_weight = BACKGROUND_WEIGHT

    def starts(
        self, predict: Predict, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def uniform() -> torch.Tensor:
            return torch.rand(len(target), generator=generator, device=target.device)

        first = uniform() < FIRST_SHARE
        timesteps = torch.where(first, float(LAST), (uniform() * (LAST + 1)).floor())
        noise = torch.randn(target.shape, generator=generator, device=target.device)
        start = torch.zeros_like(target)
        if (later := ~first).any():
            top = torch.full_like(timesteps[later], LAST)
            highest = self.sigma(top)[:, None, None, None]
            with torch.no_grad():
                x = noise[later] * highest
                start[later] = sampling.denoised(x, predict(x, highest, top, later), highest, self.prediction_type)
        return timesteps, start

    def counted(self, each: torch.Tensor) -> torch.Tensor:
        return (each + ROOT_FLOOR).sqrt()


OBJECTIVES = {"published": Objective, "sampler": SamplerObjective}
"""By the name that a recipe gives them."""


def foreground_weight(mask: torch.Tensor) -> torch.Tensor:
    """clamp(area / mask area, 1, 5) for each [B, 1, h, w] mask in {0, 1}: [B] (the published training)."""
    area = mask.shape[-1] * mask.shape[-2]
    return (area / mask.sum(dim=(1, 2, 3)).clamp(min=1)).clamp(1, LARGEST_WEIGHT)
