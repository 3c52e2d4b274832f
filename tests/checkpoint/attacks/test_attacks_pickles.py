"""Pickles: nothing in them is executed."""

import os
import re
import tempfile

import pytest
import torch
from attacking import Calls, refused, zipped

from diffharmony_models.checkpoint import files

NOT_PLAIN = re.compile("cannot be read as plain tensors|not a file of named tensors")
EXECUTED = os.path.join(tempfile.gettempdir(), "executed")
PICKLES = {
    "system": Calls(os.mkdir, EXECUTED),
    "getattr": Calls(getattr, "x", "upper"),
    "torch's own": Calls(torch.load, "x"),
    "a storage from a file": Calls(torch.FloatStorage._new_shared, 5),
    "sparse": torch.ones(3).to_sparse(),
    "on meta": torch.ones(3, device="meta"),
    "a module": torch.nn.Linear(2, 2),
    "a set": {1, 2},
    "bytes": b"x",
    "a list": [torch.ones(3)],
    "a number": 5,
}


@pytest.mark.parametrize("case", PICKLES)
@pytest.mark.parametrize("zip_file", [True, False])
def test_a_pickle_of_more_than_plain_tensors(case, zip_file, tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"conv_in.weight": PICKLES[case]}, path, _use_new_zipfile_serialization=zip_file)
    assert NOT_PLAIN.search(refused(path))
    assert not os.path.exists(EXECUTED)


def test_a_pickle_that_changes_what_it_calls(tmp_path):
    """BUILD gives attributes to whatever lies on the stack: functions of ours must not take them."""
    state = b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86bs."
    zipped(tmp_path / "x.bin", state)
    assert NOT_PLAIN.search(refused(tmp_path / "x.bin"))
    shadow = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    zipped(tmp_path / "x.bin", shadow)
    refused(tmp_path / "x.bin")
    torch.save({"x": torch.ones(3)}, tmp_path / "x.bin")
    assert "no part known here (x)" in refused(tmp_path / "x.bin")  # the reader works as before


@pytest.mark.parametrize("zip_file", [True, False])
def test_pickles_of_every_dtype_and_form(zip_file, tmp_path):
    """What torch itself reads, bit for bit; parameters, transposed tensors, shared storages and views among them."""

    base = torch.randn(10, 6)
    state = {str(kind): torch.randn(3, 5).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)}
    state |= {"ids": torch.arange(5), "bytes": torch.arange(5, dtype=torch.uint8), "flag": torch.tensor(True)}
    state |= {"parameter": torch.nn.Parameter(base.clone()), "transposed": base.t(), "view": base[2:4, 1:3]}
    state |= torch.nn.BatchNorm2d(4).state_dict()
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(3, 3))
    for content in (state, module.state_dict(), {"state_dict": module.state_dict(), "epoch": 5, "rate": 0.5}):
        torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zip_file)
        expected = torch.load(tmp_path / "x.bin", weights_only=True)
        expected = expected.get("state_dict", expected)
        found = files.WeightFile(tmp_path / "x.bin").state()
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert value.dtype == expected[key].dtype and torch.equal(value, expected[key]), key


def test_every_way_to_cut_a_pickle_short_names_it(parts, tmp_path):
    path = tmp_path / "cut.bin"
    for zip_file in (True, False):
        torch.save(dict(parts["refiner"].state), path, _use_new_zipfile_serialization=zip_file)
        content = path.read_bytes()
        for share in (
            0,
            1,
            3,
            4,
            30,
            100,
            1000,
            len(content) // 3,
            len(content) // 2,
            len(content) - 1000,
            len(content) - 1,
        ):
            path.write_bytes(content[:share])
            assert NOT_PLAIN.search(refused(path))


def test_every_byte_changed(parts, tmp_path):
    """Whatever a flipped byte does, it ends in words or in tensors."""
    path = tmp_path / "flipped.bin"
    torch.save({"conv_in.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        refused(path)
