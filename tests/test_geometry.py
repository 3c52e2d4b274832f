import pytest
import torch

from diffharmony_models import geometry


@pytest.mark.parametrize(
    "height, width, resolution, expected",
    [
        (512, 512, 512, (512, 512)),
        (3000, 4000, 512, (448, 576)),
        (4000, 3000, 512, (576, 448)),
        (300, 400, 1024, (896, 1152)),
        (100, 10000, 512, (64, 5120)),
        (1, 1, 64, (64, 64)),
    ],
)
def test_keep_proportions(height, width, resolution, expected):
    assert geometry.inference_size(height, width, resolution) == expected


def test_keep_stays_near_the_area_and_the_proportions():
    for height, width in [(600, 800), (1080, 1920), (853, 1280), (1500, 1000)]:
        h, w = geometry.inference_size(height, width, 1024)
        assert h % 64 == w % 64 == 0
        assert h * w / 1024**2 == pytest.approx(1, abs=0.1)
        assert (w / h) / (width / height) == pytest.approx(1, abs=0.08)


def test_square_squashes():
    assert geometry.inference_size(300, 500, 256, "square") == (256, 256)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((8, 8, 32), "too small"),
        ((8, 8, 100, "square"), "multiple of 64, not 100; try 128"),
        ((8, 8, 64, "stretch"), "stretch"),
        ((0, 8, 64), "no content"),
    ],
)
def test_sizes_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        geometry.inference_size(*arguments)


def test_resize_antialiases_and_leaves_the_same_size_alone():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert geometry.resize(stripes, (64, 64)) is stripes
    small = geometry.resize(stripes, (16, 16))
    assert small.shape == (1, 3, 16, 16)
    assert (small[..., 1:-1] - 0.5).abs().max() < 0.05
    assert geometry.resize(stripes.to(torch.bfloat16), (16, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize("length, other", [(3000, 64), (10, 64), (300, 299)])
def test_resize_of_a_line_one_pixel_wide(length, other):
    line = torch.rand(2, 3, length, 1)
    expected = geometry.resize(line.repeat(1, 1, 1, 2), (other, 2))[..., :1]
    assert torch.allclose(geometry.resize(line, (other, 1)), expected, atol=1e-5)
    assert torch.allclose(geometry.resize(line.mT, (1, other)), expected.mT, atol=1e-5)


def test_binarize_at_one_half():
    assert geometry.binarize(torch.tensor([0.0, 0.49, 0.5, 1.0])).tolist() == [0, 0, 1, 1]


def test_latent_mask_takes_the_nearest_pixel():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:16, 16:32] = 1
    mask[..., 33:40, 33:40] = 1  # misses the pixel (32, 32) that stands for its latent
    small = geometry.latent_mask(mask, (64, 64))
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 1, 2:4] = 1
    assert torch.equal(small, expected)
    with pytest.raises(ValueError, match="multiple of 8"):
        geometry.latent_mask(mask, (60, 64))


def test_match_expands_one_mask_and_refuses_the_rest():
    composite = torch.rand(3, 3, 4, 6)
    _, mask = geometry.match(composite, torch.ones(1, 1, 4, 6))
    assert mask.shape == (3, 1, 4, 6)
    with pytest.raises(ValueError, match=r"Image and mask must be the same size\. 6x4 != 4x4"):
        geometry.match(composite, torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="3 images came with 2 masks"):
        geometry.match(composite, torch.ones(2, 1, 4, 6))
    with pytest.raises(ValueError, match=r"mask must be a float tensor \[batch, 1"):
        geometry.match(composite, torch.ones(3, 4, 6))
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        geometry.match(composite.to(torch.uint8), torch.ones(1, 1, 4, 6))


def test_is_empty_frame_by_frame():
    mask = torch.zeros(3, 1, 4, 4)
    mask[1, 0, 2, 2] = 1
    mask[2] = 0.4
    assert geometry.is_empty(mask).tolist() == [True, False, True]


@pytest.mark.parametrize("feather", [0, 1, 3])
def test_paste_leaves_the_background_bit_for_bit(feather):
    composite, harmonized = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:13, 3:14] = 1
    mask[..., 4, :] *= 0.3
    outside = (mask == 0).expand_as(composite)
    harmonized[outside] = float("nan")
    before = composite.clone(), harmonized.clone(), mask.clone()
    pasted = geometry.paste(harmonized, composite, mask, feather)
    assert torch.equal(pasted[outside], composite[outside])
    assert torch.equal(pasted[..., 8, 8], harmonized[..., 8, 8])
    assert torch.isfinite(pasted).all()
    for now, then in zip((composite, harmonized, mask), before):
        assert torch.equal(now.nan_to_num(), then.nan_to_num())


def test_paste_blends_a_soft_matte():
    pasted = geometry.paste(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.full((1, 1, 2, 2), 0.25))
    assert torch.equal(pasted, torch.full((1, 3, 2, 2), 0.25))


def test_feather_is_a_ramp_inside_the_edge_and_none_at_the_frame():
    mask = torch.zeros(1, 1, 9, 12)
    mask[..., 4:] = 1  # cut by three sides of the frame, a true edge on the left
    ramp = geometry.feathered(mask, 3)
    for row in ramp[0, 0]:
        assert row.tolist() == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="-1"):
        geometry.feathered(mask, -1)


def test_paste_refuses_sizes_that_differ():
    with pytest.raises(ValueError, match="composite's shape"):
        geometry.paste(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (1, 1)])
def test_pad_and_crop(size):
    image = torch.rand(1, 3, *size)
    padded = geometry.pad(image, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(geometry.crop(padded, size), image)
    assert torch.equal(padded[..., -1, -1], image[..., -1, -1])
