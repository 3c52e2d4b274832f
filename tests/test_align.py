import pytest
import torch
import torch.nn.functional as F
from test_transfer import LOOKS, bright, dim, ellipse, noise, pair, psnr, texture, warm

from diffharmony_models import align as module
from diffharmony_models.align import align
from diffharmony_models.transfer import transfer


def moved(image, right=0.0, down=0.0, scale=1.0, drift=None):
    """The image scaled about its middle and then shifted, in pixels; drift [1, 2, H, W]: what moves beyond that."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    at = torch.stack(((x - right) * 2 / width - 1, (y - down) * 2 / height - 1), -1)[None] / scale
    if drift is not None:
        at = at + drift.movedim(1, -1) * 2 / torch.tensor([width, height])
    return F.grid_sample(image, at, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("look, right, down, scale", [(warm, 8, -8, 1.01), (dim, -5.3, 7.6, 0.99), (bright, 2.5, 0, 1)])
def test_a_shifted_and_scaled_picture_gives_the_colours_of_the_unshifted_one(look, right, down, scale):
    real, mask = texture(320, 400, 1), ellipse(320, 400)
    composite, _ = pair(real, mask, look)
    picture = moved(real, right, down, scale)
    aligned, seen, (fit,) = align(picture, composite)
    still = psnr(transfer(real, composite, mask), real, mask)
    assert psnr(transfer(picture, composite, mask), real, mask) < still - 5
    assert psnr(transfer(aligned, composite, mask, seen=seen), real, mask) > still - 1
    assert fit.shift == pytest.approx((right, down), abs=0.1)
    assert fit.scale == pytest.approx((scale, scale), abs=5e-4)
    assert fit.before < fit.after and fit.after > 0.9 and not fit.poor


def test_a_picture_of_another_size_tells_its_shift_in_the_composites_pixels():
    composite = texture(320, 400, 2)
    half = F.interpolate(moved(composite, 6, -4), scale_factor=0.5, mode="bilinear", antialias=True)
    aligned, seen, (fit,) = align(half, composite)
    assert aligned.shape == half.shape and seen.shape == (1, 1, 160, 200)
    assert fit.shift == pytest.approx((6, -4), abs=0.2)


def test_local_drift_is_followed():
    composite = texture(320, 400, 3)
    drift = 1.5 * noise(320, 400, 120, 4, channels=2)
    picture = moved(bright(composite), drift=drift)
    aligned, _, (fit,) = align(picture, composite)
    inner = torch.zeros(1, 1, 320, 400)
    inner[..., 20:-20, 20:-20] = 1
    assert psnr(aligned, bright(composite), inner) > psnr(picture, bright(composite), inner) + 6
    assert 0.5 < fit.flow < 3 and fit.after > fit.before + 0.1


@pytest.mark.parametrize("look", LOOKS)
def test_what_lies_right_comes_back_as_it_is(look):
    composite = texture(200, 240, 5)
    picture = look(composite)
    aligned, seen, (fit,) = align(picture, composite)
    assert torch.equal(aligned, picture) and seen.min() == 1
    assert fit.shift == (0, 0) and fit.scale == (1, 1) and fit.flow == 0 and fit.after == fit.before > 0.8


def test_another_picture_fits_poorly_and_is_called_so():
    fit = align(texture(200, 240, 6), texture(200, 240, 7))[2][0]
    assert fit.poor and f"fits to {fit.after:.2f} of 1" in str(fit)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (9, 40)])
def test_flat_and_tiny_pictures_stay(size):
    picture, composite = torch.full((1, 3, *size), 0.4), torch.full((1, 3, *size), 0.7)
    aligned, _, (fit,) = align(picture, composite)
    assert torch.equal(aligned, picture) and fit.shift == (0, 0)


def test_a_batch_is_its_pictures_one_by_one():
    composite = torch.cat([texture(96, 128, 8), texture(96, 128, 9)])
    picture = torch.cat([moved(one, 3, 2) for one in composite.split(1)])
    together, seen, fits = align(picture, composite)
    for i, fit in enumerate(fits):
        alone, alone_seen, (other,) = align(picture[i : i + 1], composite[i : i + 1])
        assert torch.equal(together[i : i + 1], alone) and torch.equal(seen[i : i + 1], alone_seen) and fit == other


def test_what_left_the_frame_is_not_seen():
    composite = texture(160, 200, 10)
    _, seen, _ = align(moved(composite, 8, 0), composite)
    assert seen[..., :-10].min() == 1 and seen[..., -7:].max() == 0


@pytest.mark.parametrize(
    "picture, words",
    [
        (torch.rand(2, 3, 8, 8), "2 pictures came with 1 composites"),
        (torch.rand(1, 4, 8, 8), r"picture must be a float tensor.*\[1, 4, 8, 8\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "finite"),
    ],
)
def test_bad_input_is_told_in_words(picture, words):
    with pytest.raises(ValueError, match=words):
        align(picture, torch.rand(1, 3, 8, 8))


def test_the_flow_has_a_limit():
    flow = module._flow([(torch.randn(1, 1, 64, 64), torch.randn(1, 1, 64, 64))], torch.tensor([[1.0, 1], [0, 0]]))
    assert flow.abs().max() <= module.REACH * 2 / 64 + 1e-6
