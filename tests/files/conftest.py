import numpy as np
import pytest
from picture_files import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """uint8 [H, W, 3] with every channel different and no two neighbours equal."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
