"""What the tests of picture files share."""

import functools

import numpy as np
import torch
from PIL import ImageCms

HEIGHT, WIDTH = 24, 32


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@functools.cache  # a profile holds the second in which it was made
def profile(name: str = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()
