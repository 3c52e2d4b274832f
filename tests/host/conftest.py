import pytest

import graphs
import harness
import weights

from diffharmony_models import checkpoint as checkpoints


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A running ComfyUI with this pack in it. Skips where there is no ComfyUI on this machine."""
    found = harness.find()
    if isinstance(found, str):
        pytest.skip(found)
    host = harness.Host(*found, tmp_path_factory.mktemp("comfyui"))
    host.start()
    yield host
    host.stop()


@pytest.fixture(scope="session")
def bundled():
    """The engine with the bundled checkpoint, to compare with."""
    return graphs.engine(checkpoints.bundled())


@pytest.fixture(scope="session")
def published(host):
    """The folder of the published weights, unpacked into models/diffharmony, at tiny width; its checkpoint is "base"."""
    folder = host.models / "diffharmony"
    weights.published(folder)
    return folder
