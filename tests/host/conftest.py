import pytest

import browser
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


@pytest.fixture(scope="session")
def chromium(host):
    """A headless Chromium. Skips where there is none, or no playwright to drive it."""
    found = browser.find()
    if isinstance(found, str):
        pytest.skip(found)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(found), args=list(browser.FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def tab(chromium, host):
    """The host's page, open in a tab of its own."""
    tab = browser.Tab(chromium, host)
    yield tab
    tab.close()
