"""The file that a run goes on from."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffharmony_models.errors import InputError
from diffharmony_models.training import state as state_file
from diffharmony_models.training.state import FILE, State


def trained(seed=0, ema=True, scaler=True, steps=0):
    """A tiny network after some steps."""
    from diffusers.training_utils import EMAModel

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    state = State(
        model,
        optimizer,
        EMAModel(model.parameters()) if ema else None,
        torch.amp.GradScaler("cpu") if scaler else None,
        seed,
    )
    for _ in range(steps):
        step(state)
    return state


def step(state):
    loss = state.model(torch.randn(4, 2, generator=torch.Generator().manual_seed(0))).square().mean()
    if state.scaler is None:
        loss.backward()
        state.optimizer.step()
    else:
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None:
        state.ema.step(state.model.parameters())


def everything(state):
    tensors = dict(state.model.state_dict())
    if state.ema is not None:
        tensors |= {f"ema{index}": average for index, average in enumerate(state.ema.shadow_params)}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}{name}": value for name, value in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("scaler", [True, False])
def test_a_state_is_read_as_it_was_written(tmp_path, ema, scaler):
    state, other = trained(ema=ema, scaler=scaler, steps=3), trained(ema=ema, scaler=scaler)
    if scaler:
        state.scaler.update(128.0)
    state.save(tmp_path / "c", 3)
    other.load(tmp_path / "c", 3)
    if scaler:
        assert other.scaler.state_dict() == state.scaler.state_dict() and state.scaler.get_scale() == 128
    for _ in range(2):
        first, second = everything(state), everything(other)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        step(state), step(other)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [FILE]


def test_the_order_in_memory_changes_nothing(tmp_path):
    def network():
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return State(model, torch.optim.AdamW(model.parameters(), fused=True), None, None, 0)

    def step(state):
        generator = torch.Generator().manual_seed(0)
        state.optimizer.zero_grad()
        state.model(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
        state.optimizer.step()

    state, other = network(), network()
    step(state)
    state.save(tmp_path, 1)
    other.load(tmp_path, 1)
    for model in (state, other):
        step(model)
    first, second = everything(state), everything(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_had_no_gradient_is_kept_too(tmp_path):
    state = trained(scaler=False)
    state.save(tmp_path / "c", 0)
    other = trained(scaler=False)
    other.load(tmp_path / "c", 0)
    step(state), step(other)
    first, second = everything(state), everything(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_built_on_other_weights_is_not_gone_on_with(tmp_path):
    own, other = (state_file.digest({"w": torch.full((2,), value)}) for value in (1.0, 2.0))
    for made_of in ({"VAE": own}, {"VAE": other}, {}):
        state = trained(steps=1)
        state.made_of = made_of
        if not list(tmp_path.iterdir()):
            state.save(tmp_path, 3)
        if made_of.get("VAE") != other:
            state.load(tmp_path, 3)
            continue
        with pytest.raises(InputError, match=f"was made with VAE {own}, this run has {other}"):
            state.load(tmp_path, 3)


def changed(change):
    def damage(path):
        tensors, facts = load_file(path), {"step": "3", "seed": "0", "EMA": "on", "scale": "2.0", "growth_tracker": "1"}
        change(tensors, facts)
        save_file(tensors, path, facts)

    return damage


def replaced(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


BAD = {
    "cut short": (lambda path: os.truncate(path, path.stat().st_size - 8), "damaged"),
    "empty": (lambda path: os.truncate(path, 0), "damaged"),
    "a long header": (lambda path: path.write_bytes(b"\xff" * 64), "damaged"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"model": 1})), "damaged"),
    "metadata of numbers": (
        lambda path: path.write_bytes(b"\x1a" + bytes(7) + b'{"__metadata__":{"step":3}}'),
        "damaged",
    ),
    "a folder": (replaced(lambda path: path.mkdir()), f"no {FILE}"),
    "a pipe": (replaced(os.mkfifo), f"no {FILE}"),
    "a loop": (replaced(lambda path: path.symlink_to(path)), f"no {FILE}"),
    "missing": (changed(lambda tensors, _: tensors.pop("ema.2.bias")), "lacks ema.2.bias"),
    "left over": (changed(lambda tensors, _: tensors.update(more=torch.zeros(1))), "has more"),
    "another shape": (changed(lambda tensors, _: tensors.update({"model.2.weight": torch.zeros(1, 4)})), "[1, 4]"),
    "another dtype": (changed(lambda tensors, _: tensors.update({"model.2.weight": torch.zeros(1, 3).half()})), "F16"),
    "a negative square": (changed(lambda tensors, _: tensors["optimizer.2.weight.exp_avg_sq"].sub_(1)), "damaged"),
    "NaN": (changed(lambda tensors, _: tensors["optimizer.2.weight.exp_avg_sq"].fill_(torch.nan)), "NaN"),
    "another step": (changed(lambda _, facts: facts.update(step="4")), "step 4"),
    "no step": (changed(lambda _, facts: facts.pop("step")), "step None"),
    "another seed": (changed(lambda _, facts: facts.update(seed="9" * 5000)), "seed 999"),
    "EMA off": (changed(lambda _, facts: facts.update(EMA="off")), "EMA off"),
    "a scale that is no number": (changed(lambda _, facts: facts.update(scale="x")), "loss scale"),
    "an infinite scale": (changed(lambda _, facts: facts.update(scale="inf")), "loss scale"),
    "a long tracker": (changed(lambda _, facts: facts.update(growth_tracker="9" * 5000)), "loss scale"),
    "half a scale": (changed(lambda _, facts: facts.pop("growth_tracker")), "loss scale"),
}  # fmt: skip


@pytest.mark.parametrize("damage, words", BAD.values(), ids=BAD)
def test_a_bad_state_changes_nothing(tmp_path, damage, words):
    trained(steps=3).save(tmp_path, 3)
    state = trained(steps=1)
    before = everything(state)
    damage(tmp_path / FILE)
    with pytest.raises(ValueError) as caught:
        state.load(tmp_path, 3)
    assert type(caught.value).__name__ == "InputError"
    message = str(caught.value)
    assert str(tmp_path) in message and words in message and len(message) < 400 + len(str(tmp_path))
    after = everything(state)
    assert all(torch.equal(after[name], before[name]) for name in before)
