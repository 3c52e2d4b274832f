import browser
import graphs
import harness
import pytest
import weights
from safetensors.torch import save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.pipeline import DiffHarmony

SD_VAE = "vae-ft-mse-840000-ema-pruned.safetensors"  # the name that the workflows look for


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
def regressor(host) -> ColorRegressor:
    """A colour regressor, in a file that the list of HarmonizeColors has."""
    network = weights.color_regressor()
    content = checkpoints.Checkpoint("colors", color_regressor=Part(dict(network.config), network.state_dict()))
    checkpoints.write(content, host.models / "diffharmony" / graphs.COLORS, "fp32")
    return network


@pytest.fixture(scope="session")
def published(host):
    """The folder of the published weights in models/diffharmony, at tiny width; its checkpoint is "base".

    Beside it lies the one file that `convert` makes of it, which the workflows name.
    """
    folder = host.models / "diffharmony"
    weights.published(folder)
    checkpoints.write(checkpoints.read(folder / "base"), folder / "diffharmony.safetensors")
    return folder


@pytest.fixture(scope="session")
def sd_vae(host) -> DiffHarmony:
    """A VAE of SD 1.5's shape where the workflows look for one; as an engine without the other parts."""
    part = weights.vae((128, 256, 512, 512), layers=2)
    state = {key: value.half() for key, value in part.state.items()}
    (host.models / "vae").mkdir(exist_ok=True)
    save_file(state, host.models / "vae" / SD_VAE)
    part = Part(part.config, {key: value.float() for key, value in state.items()})
    return DiffHarmony(vae=checkpoints.build_vae(part).requires_grad_(False))


@pytest.fixture(scope="session")
def base(published, sd_vae) -> DiffHarmony:
    """The published checkpoint's engine with SD 1.5's VAE in place of its own."""
    ours = graphs.engine(published / "base")
    ours.vae = sd_vae.vae
    return ours


@pytest.fixture(scope="session")
def sd15(host, sd_vae) -> None:
    """Checkpoints that the host's loader takes for SD 1.5 and its inpainting model."""
    (host.models / "checkpoints").mkdir(exist_ok=True)
    for name, channels in (("v1-5-pruned-emaonly-fp16", 4), ("sd-v1-5-inpainting", 9)):
        graph = harness.Graph()
        file = str(host.models / "checkpoints" / f"{name}.safetensors")
        graph("TestCheckpoint", file=file, channels=channels, vae=str(host.models / "vae" / SD_VAE))
        host.run(graph)


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
