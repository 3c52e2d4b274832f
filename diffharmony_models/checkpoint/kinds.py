"""The parts that a checkpoint can have: how each is known, what its config may say, which tensors it has.

`KINDS` is the one place that tells them apart; a new part is an entry there and a field of `Checkpoint`. Plain Python.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import schemas, shapes

Shapes = Mapping[str, tuple[int, ...]]


class Lacking(Exception):
    """There is no tensor of this name, or one of fewer dimensions."""


@dataclass(frozen=True)
class Kind:
    """One kind of network."""

    title: str  # for people
    classes: tuple[str, ...]  # what a config.json calls it
    mark: str  # how the name of some tensor of it begins
    unless: str | None  # how no name does
    schema: dict[str, tuple[Callable[[Any], Any], Any]]  # of each key of the config: rule, default
    facts: Callable[[Shapes], dict]  # what the shapes of its tensors say, under the config's names
    network: tuple[str, str]  # module and class; the module is imported when one is built
    shapes: Callable[[dict], Shapes] | None = None  # of all tensors that a config asks for; None: the network tells it
    contradiction: Callable[[dict], str | None] = lambda config: None  # of a config's values, in words
    channels: tuple[int, ...] = ()  # that it can take in; none: any
    wanted: str = ""  # those, in words
    beside: bool = False  # whether it is published in a folder beside the pipeline's


# What shapes tell.


def _size(there: Shapes, name: str, axis: int) -> int:
    if len(there.get(name, ())) <= axis:
        raise Lacking(name)
    return there[name][axis]


def _count(there: Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in there if name.startswith(prefix)})


def _block_facts(there: Shapes, down: str = "", up: str = "") -> dict:
    levels = range(_count(there, f"{down}down_blocks."))
    return {
        "in_channels": _size(there, f"{down}conv_in.weight", 1),
        "out_channels": _size(there, f"{up}conv_out.weight", 0),
        "block_out_channels": [_size(there, f"{down}down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels],
        "layers_per_block": _count(there, f"{down}down_blocks.0.resnets."),
    }


def _unet_facts(there: Shapes) -> dict:
    to_k = next((name for name in there if name.endswith(".attn2.to_k.weight")), "attn2.to_k.weight")
    return {**_block_facts(there), "cross_attention_dim": _size(there, to_k, 1)}


def _vae_facts(there: Shapes) -> dict:
    return {
        **_block_facts(there, "encoder.", "decoder."),
        "latent_channels": _size(there, "decoder.conv_in.weight", 1),
    }


def _harmony_vae_facts(there: Shapes) -> dict:
    return {
        **_vae_facts(there),
        "additional_in_channels": _size(there, "conditional_encoder.add_conv_in.weight", 1),
    }


def _color_regressor_facts(there: Shapes) -> dict:
    from ..networks.color_regressor import HEAD_WIDTH

    return {"width": _size(there, "curve.weight", 1), "heads": _size(there, "query.weight", 0) // HEAD_WIDTH}


def _text_encoder_facts(there: Shapes) -> dict:
    return {
        "vocab_size": _size(there, "embeddings.token_embedding.weight", 0),
        "hidden_size": _size(there, "embeddings.token_embedding.weight", 1),
        "max_position_embeddings": _size(there, "embeddings.position_embedding.weight", 0),
        "num_hidden_layers": _count(there, "encoder.layers."),
        "intermediate_size": _size(there, "encoder.layers.0.mlp.fc1.weight", 0),
    }


KINDS = {
    "unet": Kind(
        title="UNet",
        classes=("UNet2DConditionModel",),
        mark="time_embedding.",
        unless=None,
        schema=schemas.UNET,
        facts=_unet_facts,
        network=("diffusers", "UNet2DConditionModel"),
        shapes=shapes.unet,
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
        facts=_vae_facts,
        network=("diffusers", "AutoencoderKL"),
        shapes=shapes.vae,
        contradiction=schemas.levels,
    ),
    "refiner": Kind(
        title="refiner",
        classes=("UNet2DCustom",),
        mark="down_blocks.",
        unless="time_embedding.",
        schema=schemas.REFINER,
        facts=_block_facts,
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
        facts=_harmony_vae_facts,
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
        facts=_color_regressor_facts,
        network=("..networks.color_regressor", "ColorRegressor"),
    ),
    # Not stored: the null text, which is all that is needed of it, is.
    "text_encoder": Kind(
        title="text encoder",
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        mark="embeddings.token_embedding.",
        unless=None,
        schema=schemas.TEXT_ENCODER,
        facts=_text_encoder_facts,
        network=("transformers", "CLIPTextModel"),
        shapes=shapes.text_encoder,
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
