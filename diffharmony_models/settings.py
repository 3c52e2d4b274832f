"""How a picture is harmonized: what the pipeline, the command line and the evaluation share."""

import hashlib
from dataclasses import dataclass, field, replace

from .endings import ENDINGS
from .errors import InputError
from .recolor import Amounts
from .sampling import SAMPLERS
from .transfer import RADIUS

METHODS = ("colors", "diffusion", "both")
SHAPES = ("keep", "square")
DECODERS = ("vae", "harmony_vae")

# The limits of what a user may ask for, those of the nodes' inputs.
LARGEST_RESOLUTION = 8192
LARGEST_AMOUNT = 1.5
LARGEST_RADIUS = 128
LARGEST_FEATHER = 512
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Settings:
    """What of the method is chosen. InputError for an unknown name.

    method: "colors", the colour regressor alone, at the output size; "diffusion", the paper's stages; "both", the
    stages on what the regressor has made of the composite; None: `DiffHarmony.default_method`.
    amounts: how much of the change is made; its `local` is that of the regressor's.

    crop: "off"; "auto", a small foreground in a window of its own; or the window's side as a multiple of the
    foreground's, see `crop.around`. The command line heeds it, a call of the pipeline does not.

    Of the stages: resolution and shape, see `geometry.inference_size`, and steps; 0 is the checkpoint's own. sampler:
    of `sampling.SAMPLERS`. seed: of the noise; picture n of a batch has that of seed + n. decoder: "vae", or
    "harmony_vae", the checkpoint's Harmony-VAE, which also encodes; it stands in for a VAE that is not there.
    ending: of `endings.ENDINGS`.

    Of the endings: radius and detail, see `transfer.transfer`. feather: pixels by which a hard mask's edge is softened
    inwards. keep_background: False leaves, outside the mask, what the decoder or the refiner has made.
    """

    method: str | None = None
    amounts: Amounts = field(default_factory=Amounts)
    crop: float | str = "off"
    resolution: int = 0
    shape: str = "keep"
    steps: int = 0
    sampler: str = "euler_ancestral"
    seed: int = 0
    decoder: str = "vae"
    ending: str = "transfer"
    radius: int = RADIUS
    detail: float = 1.0
    feather: int = 0
    keep_background: bool = True

    def __post_init__(self) -> None:
        known = {"shape": SHAPES, "sampler": SAMPLERS, "decoder": DECODERS, "ending": tuple(ENDINGS)}
        if self.method is not None:
            known["method"] = METHODS
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise InputError(f'Unknown {name} "{getattr(self, name)}"; expected one of {", ".join(names)}.')

    def for_picture(self, name: str) -> "Settings":
        """These for one picture of a folder, with a seed of its own: a hash of the seed and of the picture's file name
        without its extension. So it has the same noise in any folder and in any order."""
        text = f"{self.seed}/{name}".encode("utf-8", "surrogateescape")
        return replace(self, seed=int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
