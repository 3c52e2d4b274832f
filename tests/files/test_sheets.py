"""Sheets of labelled pictures."""

import pytest
import torch

from diffharmony_models.files import sheets


def test_comparison_sheet_shows_every_panel_at_one_scale():
    red, mask, green = torch.zeros(1, 3, 20, 40), torch.ones(1, 1, 40, 80), torch.zeros(1, 3, 10, 20)
    red[:, 0], green[:, 1] = 1, 1
    rows = [[("composite", red), ("mask", mask)], [("a label much too long for its picture " * 3, green)]]
    sheet = sheets.comparison_sheet(rows, side=128, title="picture.png")
    margin, caption = 8, 26
    first = margin + caption + caption  # below the title and the first row's captions
    second = first + 64 + margin + caption
    assert sheet.shape == (1, 3, second + 64 + margin, margin + 2 * (128 + margin))
    for colour, top, left in (
        ((1, 0, 0), first, margin),
        ((1, 1, 1), first, 128 + 2 * margin),
        ((0, 1, 0), second, margin),
    ):
        shown = (sheet[0] == torch.tensor(colour).view(3, 1, 1)).all(dim=0)
        assert shown[top : top + 64, left : left + 128].all()
        assert colour == (1, 1, 1) or shown.sum() == 128 * 64  # and nowhere else
    dark = (sheet[0].amax(dim=0) < 0.5)[:, : margin + 128]
    for top in (margin, first - caption, second - caption):  # the title, and a caption above each picture
        assert 20 < dark[top : top + caption].sum() < 1500


@pytest.mark.parametrize("title", ["two\nlines", "not\udcff UTF-8", "\x1b[31m"])
def test_a_sheet_of_any_name(title):
    assert sheets.comparison_sheet([[(title, torch.zeros(1, 3, 8, 8))]], 64, title).isfinite().all()
