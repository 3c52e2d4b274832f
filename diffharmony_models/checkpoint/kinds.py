"""The parts that a checkpoint can have: how each is known, what its config may say, which tensors it has.

`KINDS` is the one place that tells them apart; a new part is an entry there and a field of `Checkpoint`. Plain Python.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import schemas, shapes
from .shapes import Shapes


@dataclass(frozen=True)
class Kind:
    """One kind of network."""

    title: str  # for people
    classes: tuple[str, ...]  # what a config.json calls it
    mark: str  # how the name of some tensor of it begins
    unless: str | None  # how no name does
    schema: schemas.Schema  # what its config may say
    network: tuple[str, str]  # module and class; the module is imported when one is built
    expected: Callable[[dict], Shapes] | None = None  # tensors that a config asks for; None: the network tells it
    contradiction: Callable[[dict], str | None] = lambda config: None  # of a config's values, in words
    channels: tuple[int, ...] = ()  # that it can take in; none: any
    wanted: str = ""  # those, in words
    beside: bool = False  # whether it is published in a folder beside the pipeline's


KINDS = {
    "unet": Kind(
        title="UNet",
        classes=("UNet2DConditionModel",),
        mark="time_embedding.",
        unless=None,
        schema=schemas.UNET,
        network=("diffusers", "UNet2DConditionModel"),
        expected=shapes.unet,
        contradiction=schemas.unet_heads,
        channels=(9,),
        wanted="a 9-channel inpainting UNet is expected (noisy latent 4, mask 1, composite latent 4). Use Stable "
        "Diffusion inpainting weights or DiffHarmony's",
    ),
    "vae": Kind(
        title="VAE",
        classes=("AutoencoderKL",),
        mark="encoder.down_blocks.",
        unless="conditional_encoder.",
        schema=schemas.VAE,
        network=("diffusers", "AutoencoderKL"),
        expected=shapes.vae,
        contradiction=schemas.levels,
    ),
    "refiner": Kind(
        title="refiner",
        classes=("UNet2DCustom",),
        mark="down_blocks.",
        unless="time_embedding.",
        schema=schemas.REFINER,
        network=("..networks.refiner", "Refiner"),
        contradiction=schemas.refiner_heads,
        channels=(7, 4, 3),
        wanted="expected 7, 4 or 3 channels. Get another refiner",
        beside=True,
    ),
    "harmony_vae": Kind(
        title="Harmony-VAE",
        classes=("ConditionVAE",),
        mark="conditional_encoder.",
        unless=None,
        schema=schemas.HARMONY_VAE,
        network=("..networks.harmony_vae", "HarmonyVAE"),
        contradiction=schemas.levels,
        beside=True,
    ),
    "color_regressor": Kind(
        title="colour regressor",
        classes=("ColorRegressor",),
        mark="backbone.stem.",
        unless=None,
        schema=schemas.COLOR_REGRESSOR,
        network=("..networks.color_regressor", "ColorRegressor"),
    ),
    # Not stored: the null text, which is all that is needed of it, is.
    "text_encoder": Kind(
        title="text encoder",
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        mark="embeddings.token_embedding.",
        unless=None,
        schema=schemas.TEXT_ENCODER,
        network=("transformers", "CLIPTextModel"),
        expected=shapes.text_encoder,
        contradiction=schemas.text_heads,
    ),
}
PARTS = tuple(name for name in KINDS if name != "text_encoder")


def of_config(config: Mapping[str, Any]) -> str | None:
    """The kind of part that a config.json describes; None for another network's, or where it does not say."""
    name = class_of(config)
    return next((kind for kind, known in KINDS.items() if name in known.classes), None)


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that a config.json of diffusers or transformers names."""
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return next((name for name in names if isinstance(name, str)), None)


def of_tensors(names: Iterable[str]) -> str | None:
    """The kind of part that has tensors of these names; None for what is no part."""
    names = [name.removeprefix("text_model.") for name in names]

    def begins(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    found = (kind for kind, one in KINDS.items() if begins(one.mark) and not (one.unless and begins(one.unless)))
    return next(found, None)
