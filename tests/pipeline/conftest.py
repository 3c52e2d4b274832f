import pytest
from tiny_pipeline import tiny

from diffharmony_models.pipeline import DiffHarmony


@pytest.fixture(scope="module")
def engine() -> DiffHarmony:
    return tiny()
