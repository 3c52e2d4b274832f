import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from diffharmony_models import transfer as module
from diffharmony_models.geometry import resize
from diffharmony_models.transfer import transfer


def psnr(image, other, mask=None):
    error = (image - other).square()
    mean = error.mean() if mask is None else (error * mask).sum() / (3 * mask.sum())
    return -10 * math.log10(max(float(mean), 1e-12))


def noise(height, width, scale, seed, channels=3):
    """Smooth noise of unit variance whose blobs measure about `scale` pixels."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(1, channels, height // scale + 3, width // scale + 3, generator=generator)
    big = F.interpolate(small, size=(height, width), mode="bicubic", align_corners=True)
    return big / big.std()


def blur(image, deviation):
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation).square())
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    image = F.pad(image, (reach,) * 4, mode="replicate")
    image = F.conv2d(image, kernel, groups=image.shape[1])
    return F.conv2d(image, kernel.transpose(2, 3), groups=image.shape[1])


def ellipse(height, width):
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    inside = 1 - ((x / 0.6) ** 2 + (y / 0.75) ** 2).sqrt()
    return (inside * height / 4 + 0.5).clamp(0, 1)[None, None]  # a soft edge of a few pixels


def texture(height, width, seed):
    """An image with colour blobs of all sizes, and fine grain."""
    grain = sum(a * noise(height, width, s, seed + s) for a, s in ((0.12, 90), (0.1, 30), (0.05, 8), (0.03, 3)))
    return (0.45 + grain).clamp(0, 1)


def label(height, width):
    """A printed label on a shaded bottle, print down to the smallest readable; and the mask of the bottle."""
    picture = Image.new("RGB", (width, height), (150, 140, 90))
    draw = ImageDraw.Draw(picture)
    left, right = round(0.2 * width), round(0.8 * width)
    draw.rectangle((left, 0, right, height), fill=(45, 90, 60))
    draw.rectangle((left, height // 4, right, height * 7 // 8), fill=(235, 225, 200))
    draw.rectangle((left, height // 4, right, height * 3 // 8), fill=(190, 30, 40))
    draw.text((left + 8, height * 0.27), "OLIVE OIL", font=ImageFont.load_default(height * 0.08), fill=(250, 240, 210))
    for i, size in enumerate((22, 16, 12, 10, 9)):
        place = (left + 8, height * (0.42 + 0.09 * i))
        draw.text(place, "Olives 99 %, salt. Best before 2031.", font=ImageFont.load_default(size), fill=(20, 20, 25))
    image = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, height, width, 3)
    image = image.permute(0, 3, 1, 2) / 255
    shade = 0.75 + 0.3 * torch.sin(torch.linspace(0, 3.1, width))
    mask = torch.zeros(1, 1, height, width)
    mask[..., left : right + 1] = 1
    return (image * shade).clamp(0, 1), mask


def warm(image):
    """Another look: gamma, white balance, saturation."""
    image = image.clamp(0, 1) ** 1.4 * torch.tensor([1.1, 0.9, 0.65]).view(1, 3, 1, 1)
    grey = image.mean(1, keepdim=True)
    return (grey + 0.7 * (image - grey)).clamp(0, 1)


def dim(image):
    """Another look: darker, less contrast, channels mixed, lit from one side."""
    matrix = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.05, 0.2, 0.75]])
    image = torch.einsum("ij,bjhw->bihw", matrix, image) * 0.75 + 0.08
    return (image * (0.8 + 0.3 * torch.linspace(0, 1, image.shape[-1]))).clamp(0, 1)


def bright(image):
    """Another look: gamma below 1, strong colours, a cast."""
    image = image.clamp(0, 1) ** 0.75 + torch.tensor([-0.04, 0.0, 0.06]).view(1, 3, 1, 1)
    grey = image.mean(1, keepdim=True)
    return (grey + 1.25 * (image - grey)).clamp(0, 1)


LOOKS = [warm, dim, bright]


def pair(real, mask, look):
    """(composite, perfect small result): 8 bit, the small side half of the large."""
    composite = (torch.lerp(real, look(real), mask) * 255).round() / 255
    return composite, resize(real, (real.shape[-2] // 2, real.shape[-1] // 2))


def weakly_decoded(image):
    """What a small autoencoder leaves of an image at about 24 dB: blur, blotches of colour, no fine texture."""
    blotches = 0.015 * noise(*image.shape[-2:], 20, 5) + 0.012 * noise(*image.shape[-2:], 6, 6)
    return (blur(image, 2.0) + blotches).clamp(0, 1)


def sharpness(image, mask):
    """Gradient energy inside the mask."""
    inside = mask[..., 1:, 1:] * mask[..., :-1, :-1]
    across, down = image[..., 1:, 1:] - image[..., 1:, :-1], image[..., 1:, 1:] - image[..., :-1, 1:]
    return float(((across.square() + down.square()) * inside).sum())


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("subject", ["texture", "label"])
def test_a_perfect_small_result_gives_40_db_at_full_size(subject, look):
    height, width = 320, 400
    real, mask = (texture(height, width, 1), ellipse(height, width)) if subject == "texture" else label(height, width)
    composite, small = pair(real, mask, look)
    assert psnr(composite, real) < 27
    assert psnr(transfer(small, composite, mask), real) >= 40


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_a_perfect_small_result_gives_40_db_on_photos(name, look):
    data = pytest.importorskip("skimage.data")
    real = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255
    mask = ellipse(*real.shape[-2:])
    composite, small = pair(real, mask, look)
    assert psnr(composite, real) < 27
    assert psnr(transfer(small, composite, mask), real) >= 40


@pytest.mark.parametrize("look", LOOKS)
def test_print_stays_sharp_when_the_small_result_lost_it(look):
    real, mask = label(320, 400)
    composite, small = pair(real, mask, look)
    small = weakly_decoded(small)
    result = transfer(small, composite, mask)
    assert sharpness(resize(small, real.shape[-2:]), mask) < 0.4 * sharpness(real, mask)
    assert 0.85 < sharpness(result, mask) / sharpness(real, mask) < 1.15
    assert psnr(result, real, mask) > psnr(resize(small, real.shape[-2:]), real, mask) + 8
    assert psnr(result, real, mask) > psnr(composite, real, mask) + 8


def test_flat_noisy_places_keep_their_texture():
    """Grain that the small result does not show at all must not be smoothed away, nor blotches be carved from it."""
    grain = 0.02 * torch.randn(1, 3, 256, 256)
    real, mask = 0.5 + grain, ellipse(256, 256)
    result = transfer(weakly_decoded(resize(real, (128, 128))), real - 0.15, mask)
    inside = mask == 1
    assert sharpness(result, inside.float()) == pytest.approx(sharpness(real, inside.float()), rel=0.15)
    assert float((result - real).abs().amax(1, keepdim=True)[inside].mean()) < 0.05


def test_background_is_bit_exact_and_inputs_stay():
    real, mask = texture(200, 240, 3), ellipse(200, 240)
    composite, small = pair(real, mask, warm)
    kept = composite.clone(), small.clone(), mask.clone()
    for options in ({}, {"feather": 5}, {"detail": 0.3}, {"radius": 3}):
        result = transfer(small, composite, mask, **options)
        outside = (mask == 0).expand_as(result)
        assert outside.any() and torch.equal(result[outside], composite[outside])
        assert not torch.equal(result, composite)
        assert result.min() >= 0 and result.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(kept, (composite, small, mask)))


def test_soft_mattes_blend():
    real, opaque = texture(160, 160, 4), torch.ones(1, 1, 160, 160)
    composite, small = pair(real, opaque, dim)
    full = transfer(small, composite, opaque)
    half = transfer(small, composite, opaque * 0.5)
    # An even matte leaves the fit as it is, and the result half way.
    assert torch.allclose(half, (composite + full) / 2, atol=2e-3)
    ramp = torch.linspace(0, 1, 160).expand(1, 1, 160, 160)
    change = (transfer(small, composite, ramp) - composite).abs().mean((0, 1, 2))
    whole = (full - composite).abs().mean((0, 1, 2))
    assert float((change - ramp[0, 0, 0] * whole).abs().max()) < 0.02


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (700, 1), (2, 1), (1, 1), (3000, 2)])
def test_pictures_one_pixel_wide(size):
    """A line's foreground takes on the harmonized picture's change of colour; the rest stays as it is, to the bit."""
    height, width = size
    composite = resize(texture(64, 64, 0), size).clamp(0.1, 0.9)
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 2 :, width // 2 :] = 1
    harmonized = resize(composite * torch.tensor([0.7, 0.85, 1.0]).view(1, 3, 1, 1), (64, 64))
    result = transfer(harmonized, composite, mask)
    assert result.isfinite().all()
    inside = mask.expand_as(result) > 0
    assert torch.equal(result[~inside], composite[~inside])
    wanted = composite * torch.tensor([0.7, 0.85, 1.0]).view(1, 3, 1, 1)
    assert (result - wanted)[inside].abs().mean() < 0.25 * (composite - wanted)[inside].abs().mean()


@pytest.mark.parametrize("value", [1e-45, 1e-30, 1e-7])
def test_a_mask_that_is_next_to_nothing_changes_nothing(value):
    composite, harmonized = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)
    assert torch.equal(transfer(harmonized, composite, torch.full((1, 1, 40, 40), value)), composite)


@pytest.mark.parametrize("pixels, least", [(1, 0.0), (2, 0.03), (8, 0.07)])
def test_a_tiny_mask_is_shifted_as_a_whole(pixels, least):
    """At the small size a pixel or two are mixed with what surrounds them: part of the change is seen, never more."""
    composite = texture(256, 256, 6)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 100 : 100 + pixels, 60 : 60 + pixels] = 1
    small = resize(composite + 0.1 * mask, (128, 128))
    change = (transfer(small, composite, mask) - composite)[mask.expand(1, 3, -1, -1) > 0]
    assert torch.isfinite(change).all() and change.abs().max() < 0.13
    assert least < float(change.mean()) and float(change.std(correction=0)) < 0.02


def test_a_batch_is_its_images_one_by_one():
    images = torch.cat([texture(96, 128, 7), texture(96, 128, 8)])
    masks = torch.cat([ellipse(96, 128), ellipse(96, 128).roll(10, 3)])
    small = resize(dim(images), (48, 64))
    together = transfer(small, images, masks)
    for i in range(2):
        assert torch.equal(together[i : i + 1], transfer(small[i : i + 1], images[i : i + 1], masks[i : i + 1]))
    shared = transfer(small, images, masks[:1])
    assert torch.equal(shared[:1], together[:1]) and not torch.equal(shared[1:], together[1:])


def test_strips_make_no_difference(monkeypatch):
    composite, mask = texture(150, 170, 9), ellipse(150, 170)
    small = weakly_decoded(resize(warm(composite), (64, 64)))
    whole = transfer(small, composite, mask, feather=3, detail=0.8)
    monkeypatch.setattr(module, "STRIP_PIXELS", 170 * 7)
    assert torch.allclose(transfer(small, composite, mask, feather=3, detail=0.8), whole, atol=1e-6)


@pytest.mark.parametrize("background", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_no_halo(background):
    """The background's colours, which the small result mixes into the foreground's edge, must not show in it."""
    height = width = 320
    mask = (ellipse(height, width) >= 0.5).float()
    other = torch.tensor(background).view(1, 3, 1, 1).expand(1, 3, height, width)
    real = torch.lerp(other, (texture(height, width, 10) * 0.6 + 0.15), mask)
    composite = torch.lerp(real, dim(real), mask)
    result = transfer(blur(resize(real, (160, 160)), 2.0), composite, mask)
    inner = -F.max_pool2d(-mask, 9, 1, 4)
    edge, middle = mask - inner, inner
    assert psnr(result, real, middle) > 33
    assert psnr(result, real, edge) > 33
    # Not one side of the edge lighter or darker as a whole.
    assert float(((result - real) * edge).sum((2, 3)).abs().max() / edge.sum()) < 0.01


def test_no_change_of_colour_leaves_the_picture_alone():
    composite, mask = texture(200, 200, 11), ellipse(200, 200)
    assert psnr(transfer(resize(composite, (128, 128)), composite, mask), composite, mask) > 50


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_flat_foreground_takes_the_new_colour(value):
    composite = torch.full((1, 3, 64, 64), value)
    small = torch.tensor([0.3, 0.5, 0.6]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    result = transfer(small, composite, ellipse(64, 64).ceil())
    inside = (ellipse(64, 64) > 0).expand_as(result)
    assert float((result - small)[inside].abs().max()) < 1e-3


def test_any_size_of_the_small_result():
    real, mask = texture(250, 310, 12), ellipse(250, 310)
    composite = torch.lerp(real, warm(real), mask)
    for size, bound in (((192, 256), 38), ((256, 256), 38), ((500, 620), 40), ((250, 310), 40)):
        assert psnr(transfer(resize(real, size), composite, mask), real) > bound, size
    assert psnr(transfer(resize(real, (250, 310)), composite, mask, fit_size=64), real) > 32


def test_detail_goes_from_the_small_result_to_the_composites_texture():
    real, mask = label(200, 240)
    composite, small = pair(real, mask, warm)
    scaled = resize(small, real.shape[-2:])
    none, some, all_ = (transfer(small, composite, mask, detail=d) for d in (0.0, 0.5, 1.0))
    assert torch.allclose(none, torch.lerp(composite, scaled, mask), atol=1e-6)
    assert sharpness(none, mask) < sharpness(some, mask) < sharpness(all_, mask)


def test_an_empty_mask_gives_the_composite_back():
    composite = texture(64, 64, 13)
    result = transfer(torch.zeros(1, 3, 64, 64), composite, torch.zeros(1, 1, 64, 64))
    assert torch.equal(result, composite) and result.data_ptr() != composite.data_ptr()


def test_half_precision_comes_back_in_half_precision():
    composite, mask = texture(64, 64, 14), ellipse(64, 64)
    small = resize(dim(composite), (32, 32))
    result = transfer(small.half(), composite.half(), mask.half())
    assert result.dtype == torch.float16
    assert torch.allclose(result.float(), transfer(small, composite, mask), atol=0.01)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"harmonized": torch.zeros(2, 3, 8, 8)}, "one for each composite"),
        ({"harmonized": torch.zeros(1, 4, 8, 8)}, "one for each composite"),
        ({"harmonized": torch.full((1, 3, 8, 8), math.nan)}, "NaN"),
        ({"mask": torch.ones(1, 1, 16, 8)}, "same size"),
        ({"radius": 0}, "radius"),
        ({"regularization": 0.0}, "regularization"),
        ({"fit_size": 4}, "16 pixels"),
        ({"detail": 1.5}, "Detail"),
        ({"feather": -1}, "Feather"),
    ],
)
def test_bad_input_is_told_in_words(change, words):
    arguments = {"harmonized": torch.zeros(1, 3, 8, 8), "composite": torch.zeros(1, 3, 16, 16)}
    arguments |= {"mask": torch.ones(1, 1, 16, 16)} | change
    with pytest.raises(ValueError, match=words):
        transfer(**arguments)
