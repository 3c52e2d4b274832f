"""Looks and composites of shared light."""

import pytest
import torch

from diffharmony_models.synthesis import composites, looks

BATCH, SIDE = 64, 48


@pytest.fixture(scope="module")
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 3, 6, 6, generator=generator)
    photo = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(BATCH, 1, SIDE, SIDE)
    mask[..., 12:36, 8:30] = 1
    return photo, mask


def made(photos, seed: int = 0, **options) -> composites.Pairs:
    photo, mask = photos
    reference = composites.statistics(photo.roll(1, 0), mask)
    return composites.make(photo, mask, torch.Generator().manual_seed(seed), reference, **options)


def test_a_seed_gives_the_same_pairs(photos):
    first, again, other = made(photos), made(photos), made(photos, seed=1)
    assert torch.equal(first.composite, again.composite) and torch.equal(first.real, again.real)
    assert not torch.equal(first.composite, other.composite)


def test_the_background_is_the_real_picture_s(photos):
    pairs = made(photos, jitter=0.0, jpeg=0.0)
    outside = (torch.nn.functional.max_pool2d(pairs.mask, 3, 1, 1) == 0).expand_as(pairs.real)
    assert torch.equal(pairs.composite[outside], pairs.real[outside])
    inside = (pairs.mask > 0).expand_as(pairs.real)
    assert (pairs.composite - pairs.real)[inside].abs().mean() > 0.03


def test_every_kind_and_what_it_does(photos):
    pairs = made(photos, jpeg=0.0, jitter=0.0)
    assert set(pairs.kind.tolist()) == set(range(len(composites.KINDS)))
    assert 0 < pairs.local.float().mean() < 0.6
    untouched = pairs.kind == composites.KINDS.index("none")
    assert torch.equal(pairs.composite[untouched], pairs.real[untouched])

    def chroma(image: torch.Tensor) -> torch.Tensor:
        return ((image - image.mean(1, keepdim=True)).abs() * pairs.mask).mean((1, 2, 3))

    dull = pairs.kind == composites.KINDS.index("dull")
    assert (chroma(pairs.composite) < chroma(pairs.real))[dull].float().mean() > 0.8


def test_both_lights_are_drawn_alike(photos):
    """The real picture's own light varies: on most pairs it is not the photo's."""
    pairs = made(photos)
    outside = 1 - pairs.mask
    moved = ((pairs.real - photos[0]).abs() * outside).mean((1, 2, 3))
    assert 0.6 < (moved > 0.01).float().mean() < 0.95


def test_a_look_that_does_nothing(photos):
    picker = looks.Draw(BATCH, torch.Generator().manual_seed(0))
    look = looks.draw(picker, torch.zeros(BATCH, 1))._replace(shoulder=torch.zeros(BATCH))
    assert (looks.apply(photos[0], look) - photos[0]).abs().max() < 1e-6


def test_color_matrix_keeps_the_luma_and_greys():
    matrix = looks.color_matrix(torch.tensor([[0.3], [1.7]]), torch.tensor([[0.0], [2.0]]))
    assert torch.allclose(matrix.sum(2), torch.ones(2, 3), atol=1e-6)
    assert torch.allclose(torch.tensor(looks.LUMA) @ matrix, torch.tensor(looks.LUMA).expand(2, 3), atol=1e-6)
    assert torch.allclose(looks.color_matrix(torch.ones(1, 1), torch.zeros(1, 1))[0], torch.eye(3), atol=1e-6)


def test_transfer_gives_the_reference_s_statistics(photos):
    photo, mask = photos
    mean, covariance = composites.statistics(photo * 0.4 + 0.3, mask.flip(-1))
    moved = composites.transfer(photo * 0.4 + 0.3, mask, mean, covariance, torch.ones(BATCH, 1))
    got_mean, got_covariance = composites.statistics(moved, mask)
    assert (got_mean - mean).abs().median() < 0.005
    assert (got_covariance - covariance).abs().median() < 0.003


def test_jpeg_like_is_what_a_jpeg_does(photos):
    """At quality 75 the loss is that of Pillow's encoder without chroma subsampling, within 2 dB."""
    import io

    import numpy as np
    from PIL import Image

    picture = (
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 0.3 + photos[0][:1, :, :1, :1] * 0.5
    )

    def psnr(other: torch.Tensor) -> float:
        return -10 * torch.log10((picture - other).square().mean()).item()

    file = io.BytesIO()
    Image.fromarray((picture[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8")).save(
        file, "JPEG", quality=75, subsampling=0
    )
    pillow = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None] / 255
    ours = composites.jpeg_like(picture, torch.tensor([[75.0]]))
    assert abs(psnr(ours) - psnr(pillow)) < 2
    assert psnr(composites.jpeg_like(picture, torch.tensor([[95.0]]))) > psnr(ours)


def test_composites_of_any_size():
    """Also of one that JPEG's blocks do not divide; a picture of whole blocks is compressed as alone."""
    picture = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(3))
    quality = torch.tensor([[80.0]])
    whole, cut = composites.jpeg_like(picture, quality), composites.jpeg_like(picture[..., :37, :51], quality)
    assert torch.allclose(whole[..., :32, :48], cut[..., :32, :48], atol=1e-6) and cut.shape == (1, 3, 37, 51)
    for height, width in ((1, 1), (1, 9), (13, 21)):
        photo, mask = torch.rand(4, 3, height, width), torch.ones(4, 1, height, width)
        pairs = composites.make(
            photo, mask, torch.Generator().manual_seed(0), composites.statistics(photo, mask), jpeg=1
        )
        assert pairs.composite.shape == pairs.real.shape == photo.shape and pairs.composite.isfinite().all()
