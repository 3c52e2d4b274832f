import math

import pytest
import torch
from test_transfer import dim, ellipse, texture, warm

from diffharmony_models import lut, recolor, transfer
from diffharmony_models.networks.color_regressor import ColorChange, apply_change


def a_change(local=0.0):
    """A curve that stays in [0, 1], and a field that varies by `local` from left to right."""
    curve = torch.zeros(1, 10, 3)
    curve[:, 1:4] = torch.tensor([[-0.2, 0.05, 0.0], [0.05, -0.25, 0.0], [0.0, 0.0, -0.3]])
    curve[:, 4] = 0.1
    field = torch.zeros(1, 6, 10, 10)
    field[:, 3:] = 0.05 + local * torch.linspace(-1, 1, 10)
    return ColorChange(curve, field)


def colors(change, amounts=None, mask=None):
    return lut.Colors(
        change, amounts or recolor.Amounts(), texture(96, 128, 1), ellipse(96, 128) if mask is None else mask
    )


def test_the_table_of_a_change_without_local_light_is_the_change():
    change = a_change()
    table, rest = lut.of_picture(colors(change), 0)
    image = texture(60, 80, 2)
    assert table.shape == (33, 33, 33, 3) and table.min() >= 0 and table.max() <= 1
    assert (lut.apply(table, image) - apply_change(image, change).clamp(0, 1)).abs().max() < 5e-4
    assert rest.delta_e < 0.1 and rest.whole > 3 and rest.decibels > 60


@pytest.mark.parametrize("amounts", [recolor.Amounts(0.5), recolor.Amounts(1.2, 0.3, 1.4), recolor.Amounts(local=0)])
def test_the_table_has_the_amounts(amounts):
    change, image = a_change(), texture(60, 80, 2)
    table, rest = lut.of_picture(colors(change, amounts), 0)
    expected = recolor.apply(image, torch.ones(1, 1, 60, 80), change, amounts)
    assert (lut.apply(table, image) - expected).abs().max() < 5e-4 and rest.delta_e < 0.1


def test_what_varies_over_the_foreground_is_left_out_and_told():
    found = [lut.of_picture(colors(a_change(local)), 0)[1] for local in (0.02, 0.04, 0.08)]
    assert found[0].delta_e < found[1].delta_e < found[2].delta_e < found[2].whole
    assert found[1].delta_e == pytest.approx(2 * found[0].delta_e, rel=0.15)
    assert found[0].decibels - found[1].decibels == pytest.approx(6, abs=0.5)
    assert f"ΔE {found[2].delta_e:.1f}" in str(found[2])


def test_the_fields_mean_counts_the_foreground_alone():
    mask = torch.zeros(1, 1, 96, 128)
    mask[..., :, 90:] = 1
    table, _ = lut.of_picture(colors(a_change(0.2), mask=mask), 0)
    shift = (table - lut.of_picture(colors(a_change()), 0)[0])[16, 16, 16]
    assert (shift > 0.1).all()


def test_the_table_of_a_fitted_change():
    composite, mask = texture(96, 128, 3), ellipse(96, 128)
    model = transfer.find(warm(composite), composite, mask)
    table, rest = lut.of_picture(colors([lut.reduced(model)])._replace(composite=composite, mask=mask), 0)
    inside = (mask == 1).expand_as(composite)
    assert (lut.apply(table, composite) - warm(composite))[inside].abs().mean() < 0.01
    assert 0 < rest.delta_e < 2 < rest.whole


def test_the_change_between_two_pictures():
    composite, mask = texture(96, 128, 4), ellipse(96, 128)
    table = lut.table(lut.curve_between(composite, torch.lerp(composite, dim(composite), mask), mask))
    rest = lut.left_out(table, composite, dim(composite), mask)
    assert 1 < rest.delta_e < 0.5 * rest.whole  # dim is lit from one side
    with pytest.raises(ValueError, match="empty"):
        lut.curve_between(composite, composite, torch.zeros_like(mask))


def test_no_foreground_has_no_table():
    empty = torch.zeros(1, 1, 96, 128)
    assert lut.of_picture(colors(a_change(), mask=empty), 0) is None
    assert lut.of_picture(colors([None]), 0) is None
    table = lut.table(lambda image: image)
    assert lut.left_out(table, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), empty[..., :8, :8]).decibels == math.inf


def test_the_file_is_what_the_format_says(tmp_path):
    table = lut.table(lambda image: image * torch.tensor([0.5, 0.75, 1.0]).view(1, 3, 1, 1))
    lut.write(tmp_path / "a.cube", table, 'of "my" picture\n')
    lines = (tmp_path / "a.cube").read_text().splitlines()
    assert lines[:4] == [
        'TITLE "of my picture"', "LUT_3D_SIZE 33", "DOMAIN_MIN 0.0 0.0 0.0", "DOMAIN_MAX 1.0 1.0 1.0",
    ]  # fmt: skip
    assert len(lines) == 4 + 33**3
    assert lines[4 + 32] == "0.500000 0.000000 0.000000"  # red is fastest
    assert lines[-33] == "0.000000 0.750000 1.000000"
    with pytest.raises(ValueError, match="cube"):
        lut.write(tmp_path / "a.png", table, "")


def test_another_reader_sees_the_same_colours(tmp_path):
    reader = pytest.importorskip("pillow_lut")
    from PIL import Image

    table, _ = lut.of_picture(colors(a_change()), 0)
    lut.write(tmp_path / "a.cube", table, "a change")
    image = texture(60, 80, 5)
    pixels = (image[0].movedim(0, -1) * 255).round().byte()
    shown = Image.fromarray(pixels.numpy()).filter(reader.load_cube_file(str(tmp_path / "a.cube")))
    found = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(60, 80, 3).float()
    wanted = lut.apply(table, pixels.movedim(-1, 0)[None] / 255)[0].movedim(0, -1) * 255
    assert (found - wanted).abs().max() <= 1
