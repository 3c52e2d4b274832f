"""The photos and the masks that composites are made of, as they are read."""

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import images
from .sources import Entry

SMALLEST, LARGEST = 0.005, 0.95  # of the picture: a smaller foreground teaches nothing, a larger one has no background
REFERENCE_SIDE = 256  # references are only looked at for their statistics


class Unusable(InputError):
    """A photo or mask that cannot be used; the others can."""


class Unsuited(Unusable):
    """A mask that is as it should be, but of a foreground that teaches nothing."""


def read_photo(path: str, short_side: int = 0) -> np.ndarray:
    """[H, W, 3] uint8, scaled down to `short_side` where that is smaller (0: never). Unusable if unreadable."""
    try:
        pixels = images.to_bytes(images.read_image(path).pixels)
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a photo ({error})") from error
    height, width = pixels.shape[:2]
    if not short_side or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def read_mask(path: str, photo: str, size: tuple[int, ...]) -> np.ndarray:
    """[H, W] bool at the given size (height, width).

    Unusable where it is unreadable, of other proportions than its photo, empty, too small or all of the picture.
    """
    try:
        mask = Image.fromarray(images.read_mask(path)[0, 0].numpy())
    except InputError as error:
        raise Unusable(f"{path}: cannot be used as a mask ({error})") from error
    height, width = size
    if abs(mask.width * height - mask.height * width) > 2 * max(mask.width, mask.height, width, height):
        raise Unusable(
            f"{path}: the mask is {mask.width}x{mask.height}, its photo {photo} {width}x{height} after scaling; both "
            "must have the same proportions"
        )
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    inside = np.asarray(mask) >= 0.5
    if not SMALLEST <= inside.mean() <= LARGEST:
        raise Unsuited(
            f"{path}: the foreground covers {inside.mean():.1%} of the picture; expected {SMALLEST:.1%} to "
            f"{LARGEST:.0%}"
        )
    return inside


def read_reference(entry: Entry, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(picture [H, W, 3] uint8, mask [H, W] bool): the entry's foreground, or a random window of a photo without
    mask.
    """
    picture = read_photo(entry.image, REFERENCE_SIDE)
    if entry.mask:
        return picture, read_mask(entry.mask, entry.image, picture.shape[:2])
    mask = np.zeros(picture.shape[:2], bool)
    (top, height), (left, width) = (_window(length, rng) for length in mask.shape)
    mask[top : top + height, left : left + width] = True
    return picture, mask


def _window(length: int, rng: np.random.Generator) -> tuple[int, int]:
    part = max(4, int(length * rng.uniform(0.25, 0.9)))
    return int(rng.integers(max(1, length - part))), part
