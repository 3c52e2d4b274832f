import pytest
import torch

from diffharmony_models import crop
from diffharmony_models.crop import Window, around, stitch

PICTURE = torch.ones(1, 3, 8, 8)


def box(height, width, top, left, high, wide):
    mask = torch.zeros(1, 1, height, width)
    mask[..., top : top + high, left : left + wide] = 1
    return mask


@pytest.mark.parametrize(
    "mask, context, expected",
    [
        (box(400, 600, 100, 200, 60, 40), 2, Window(70, 160, 120, 120)),
        (box(400, 600, 0, 580, 60, 20), 2, Window(0, 480, 120, 120)),  # moved inwards at the frame
        (box(400, 600, 100, 100, 200, 300), 2, Window(0, 0, 400, 600)),
        (box(100, 600, 10, 200, 60, 60), 3, Window(0, 140, 100, 180)),  # cut where the picture is smaller
        (box(400, 600, 200, 300, 1, 1), 2, Window(168, 268, 64, 64)),
        (box(20, 30, 5, 5, 2, 2), 1, Window(0, 0, 20, 30)),
        (torch.full((1, 1, 40, 50), 0.4), 2, Window(0, 0, 40, 50)),
    ],
)
def test_the_window_is_a_square_inside_the_picture(mask, context, expected):
    assert around(mask, context) == expected
    foreground = (mask >= 0.5).sum()
    assert (expected.cut(mask) >= 0.5).sum() == foreground


def test_windows_of_one_size_make_a_batch():
    masks = torch.cat([box(300, 300, 10, 10, 40, 40), box(300, 300, 200, 150, 70, 30), torch.zeros(1, 1, 300, 300)])
    windows = crop.alike(masks, 2)
    assert {(window.height, window.width) for window in windows} == {(140, 140)}
    for window, mask in zip(windows, masks.split(1)):
        assert window.cut(mask).sum() == mask.sum() and window.cut(mask).shape[-2:] == (140, 140)
    assert crop.alike(torch.zeros(2, 1, 30, 40)) == [Window(0, 0, 30, 40)] * 2


def test_stitch_puts_the_foreground_back_and_leaves_all_else_to_the_bit():
    picture, mask = torch.rand(1, 3, 90, 120), box(90, 120, 30, 40, 10, 20)
    mask[..., 30, 40:60] = 0.5
    window = around(mask, 3)
    before = picture.clone()
    result = stitch(1 - window.cut(picture), picture, mask, window)
    outside, inside = (mask == 0).expand_as(picture), (mask == 1).expand_as(picture)
    assert torch.equal(result[outside], picture[outside]) and torch.equal(picture, before)
    assert torch.equal(result[inside], 1 - picture[inside])
    assert torch.equal(result[..., 30, 40:60], 1 - picture[..., 30, 40:60])  # the ending has blended it already


def test_stitch_scales_a_crop_of_another_size():
    picture, mask = torch.zeros(1, 3, 90, 120), box(90, 120, 30, 40, 10, 20)
    result = stitch(torch.full((1, 3, 256, 256), 0.25), picture, mask, around(mask))
    assert torch.allclose(result, 0.25 * mask.expand_as(result))


def test_a_batch_of_crops_goes_back_to_where_it_came_from():
    masks = torch.cat([box(100, 200, 30, 40, 20, 20), box(100, 200, 50, 120, 10, 20)])
    windows = crop.alike(masks, 2)
    frames = torch.rand(2, 3, 100, 200)
    ones = torch.ones(2, 3, windows[0].height, windows[0].width)
    each = crop.stitch_all(ones, crop.Crops(frames, masks, windows))
    assert torch.equal(each, torch.where(masks > 0, 1, frames))
    both = crop.stitch_all(ones, crop.Crops(frames[:1], masks, windows))
    assert torch.equal(both, torch.where(masks.amax(0, keepdim=True) > 0, 1, frames[:1]))
    variants = crop.stitch_all(ones, crop.Crops(frames[:1], masks[:1], windows[:1]))
    assert torch.equal(variants, torch.where(masks[:1] > 0, 1, frames[:1]).expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="3 harmonized crops came with 2 windows"):
        crop.stitch_all(torch.ones(3, 3, 8, 8), crop.Crops(frames, masks, windows))


def test_foregrounds_one_after_another_see_what_the_earlier_ones_became():
    picture = torch.full((1, 3, 100, 200), 0.5)
    first, second = box(100, 200, 30, 40, 20, 20), box(100, 200, 30, 65, 20, 20)
    seen = []

    def harmonize(composite, mask):
        assert composite.shape[-2:] == mask.shape[-2:] == (64, 64)
        seen.append(float(composite.max()))
        return composite + 0.25

    result = crop.one_after_another(harmonize, picture, torch.cat([first, second, torch.zeros_like(first)]), 2)
    assert seen == [0.5, 0.75]
    assert torch.equal(result, (picture + 0.25 * (first + second)))


@pytest.mark.parametrize("side, helped", [(0, False), (8, True), (13, True), (15, False)])
def test_a_crop_helps_foregrounds_under_two_percent(side, helped):
    assert crop.helps(box(100, 100, 20, 20, side, side)) is helped


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: around(torch.ones(1, 1, 8, 8), 0.5), "at least 1"),
        (lambda: around(torch.ones(2, 1, 8, 8)), "around one mask"),
        (
            lambda: stitch(torch.rand(1, 8, 8), torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8), Window(0, 0, 8, 8)),
            "crop",
        ),
        (
            lambda: stitch(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8), Window(4, 0, 8, 8)),
            "does not lie",
        ),
    ],
)
def test_bad_input_is_told_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
