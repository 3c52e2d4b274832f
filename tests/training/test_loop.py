"""The training loop itself, on a line through numbers."""

import pytest
import torch
import training_runs as runs

from diffharmony_models.training import (
    loop,
    recipe,
)


def test_the_average_leaves_the_live_weights_alone():
    from diffusers.training_utils import EMAModel

    model = torch.nn.Linear(2, 2)
    ema = EMAModel(model.parameters(), decay=0.5)
    ema.shadow_params = [torch.zeros_like(p) for p in model.parameters()]
    live = [p.detach().clone() for p in model.parameters()]
    with loop._averaged(ema, model) as averaged:
        assert all(p.abs().sum() == 0 for p in averaged.parameters())
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), live)) and model.training


class Numbers:
    """Eight samples, each a number."""

    def __len__(self):
        return 8

    def get(self, index, rng):
        return {"x": torch.full((1,), float(index))}


def train_line(output, steps, loss, export, **more):
    """The loop itself, with a line through these numbers as its model, which is returned."""
    settings = recipe.Settings(**{**runs.SMALL, "steps": steps, **more})
    loop.seeded(settings)
    line = torch.nn.Linear(1, 1)
    loop.train(settings, output, line, Numbers(), loss, export=export)
    return line


def test_dropout_goes_on_too(tmp_path):
    """What draws from the global generators is the same after a stop."""

    def loss(model, batch, generator):
        return torch.nn.functional.dropout(model(batch["x"])).square().mean(), {}

    weights = []
    for folder, stops in (("whole", (6,)), ("broken", (2, 6))):
        for steps in stops:
            line = train_line(tmp_path / folder, steps, loss, lambda model: None)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in line.parameters()]))
    assert torch.equal(*weights)


def test_a_loss_of_zero_ends_a_training(tmp_path, capsys):
    """Every now and then a batch may have nothing to learn; all of them may not."""

    def train(output, zero, steps=40):
        def loss(model, batch, generator):
            return model(batch["x"]).square().mean() * (0.0 if zero(batch["x"]) else 1.0), {}

        train_line(output, steps, loss, lambda model: (output / "result").write_text("whole"))

    with pytest.raises(ValueError, match="loss of the last 10 batches is exactly zero"):
        train(tmp_path / "zero", lambda x: True)
    with pytest.raises(ValueError, match="loss of the last 4 batches is exactly zero"):
        train(tmp_path / "short", lambda x: True, steps=4)
    train(tmp_path / "half", lambda x: 3 not in x)
    assert not (tmp_path / "zero/result").exists() and (tmp_path / "half/result").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_is_not_kept(tmp_path):
    calls = []

    def loss(model, batch, generator):
        calls.append(1)
        return model(batch["x"]).square().mean() * (torch.nan if len(calls) == 4 else 1.0), {}

    with pytest.raises(ValueError, match=r"became nan at step 3.*learning_rate"):
        train_line(tmp_path / "run", 9, loss, lambda model: None, log_every=100)
    assert [path.name for path in loop.checkpoints(tmp_path / "run")] == ["checkpoint-2"]
