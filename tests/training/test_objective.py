"""The losses of stage 1."""

import argparse

import pytest
import torch

from diffharmony_models import sampling
from diffharmony_models.training import (
    objective,
)
from diffharmony_models.training.objective import OBJECTIVES, Objective, SamplerObjective


def test_foreground_weight_is_the_published_one():
    mask = torch.zeros(3, 1, 8, 8)
    mask[0] = 1
    mask[1, :, :4] = 1
    mask[2, :, 0, 0] = 1
    assert objective.foreground_weight(mask).tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize("prediction", sampling.PREDICTIONS)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_perfect_network_has_no_loss(prediction, kind):
    """The target of every sample, also of those that stand on the model's own estimate, leads to the real picture."""
    real = torch.randn(6, 4, 8, 8)
    batch = {"real": real, "composite": torch.randn(6, 4, 8, 8), "mask": torch.ones(6, 1, 8, 8)}
    loss_of = OBJECTIVES[kind](prediction, torch.zeros(2, 3))

    class Perfect:
        def __call__(self, x, timesteps, encoder_hidden_states):
            sigma = loss_of.sigma(timesteps)[:, None, None, None]
            noisy = x[:, :4] * (sigma**2 + 1).sqrt()
            # x0 is known by the composite's latent, in which the batch is looked up.
            which = [next(i for i in range(6) if torch.equal(batch["composite"][i], row)) for row in x[:, 5:]]
            x0 = real[which]
            sample = {
                "epsilon": (noisy - x0) / sigma,
                "v_prediction": (noisy / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma,
                "sample": x0,
            }
            return type("Output", (), {"sample": sample[prediction]})

    loss, _ = loss_of(Perfect(), batch, torch.Generator().manual_seed(0))
    floor = {"published": 0, "sampler": objective.ROOT_FLOOR}[kind]
    assert loss.item() == pytest.approx(floor**0.5, abs=1e-5)
    worse, _ = loss_of(
        lambda *a, **k: type("Output", (), {"sample": Perfect()(*a, **k).sample + 1}),
        batch,
        torch.Generator().manual_seed(0),
    )
    assert worse.item() == pytest.approx((1 + floor) ** (0.5 if floor else 1), rel=1e-3)


def test_rooted_loss_counts_by_distance(monkeypatch):
    """Twice the error costs twice, not four times."""
    monkeypatch.setattr(objective, "FIRST_SHARE", 1.0)
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.ones(2, 1, 8, 8)}
    loss_of = SamplerObjective("epsilon", torch.zeros(1, 3))

    def loss(distance):
        def network(x, timesteps, encoder_hidden_states):
            assert (timesteps == 999).all()  # nothing of the picture is in x, so the target is known
            sigma = loss_of.sigma(timesteps)[:, None, None, None]
            return type("Output", (), {"sample": (x[:, :4] * (sigma**2 + 1).sqrt() - batch["real"]) / sigma + distance})

        return loss_of(network, batch, torch.Generator().manual_seed(0))[0].item()

    assert loss(4.0) / loss(2.0) == pytest.approx(2.0, rel=1e-3)


def test_foreground_loss_does_not_look_at_the_background():
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.zeros(2, 1, 8, 8)}
    batch["mask"][:, :, :4] = 1

    def network(sample):
        return lambda *_, **__: argparse.Namespace(sample=sample)

    loud = network(torch.where(batch["mask"] > 0, 0.0, 1e3).expand(-1, 4, -1, -1))
    quiet = network(torch.zeros(2, 4, 8, 8))
    values = [
        Objective("epsilon", torch.zeros(1, 3))(net, batch, torch.Generator().manual_seed(0))[0]
        for net in (loud, quiet)
    ]
    assert values[0].item() == pytest.approx(values[1].item())
