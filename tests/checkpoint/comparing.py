"""What the tests of checkpoints compare by."""

import pytest
import torch
from support import FOLDERS

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Checkpoint, Part

PUBLISHED = tuple(kind for kind in PARTS if kind in FOLDERS)  # what the published layout has folders for
BUILD = {kind: getattr(checkpoints, f"build_{kind}") for kind in PARTS}


def run(kind: str, module: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        if kind == "unet":
            return module(noise(1, 9, 8, 8), 500, noise(1, 3, 16)).sample
        if kind == "vae":
            return module(noise(1, 3, 32, 32)).sample
        if kind == "refiner":
            return module(noise(1, 7, 32, 32))
        if kind == "color_regressor":
            return module(noise(1, 3, 64, 64), torch.ones(1, 1, 64, 64)).curve
        image, mask = noise(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
        condition = module.encode_condition(image, mask)
        return module.decode(torch.zeros_like(condition.posterior.mean), condition)


def same(part: Part, other: Part) -> bool:
    a, b = part.state, other.state
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def names(checkpoint: Checkpoint) -> set[str]:
    return {name for name in (*PARTS, "null_text") if getattr(checkpoint, name) is not None}


def refused(action, *words: str) -> None:
    """The action must end in a ValueError of one line that has all the words."""
    with pytest.raises(ValueError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
