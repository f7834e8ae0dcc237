"""The head in parts gives the log-probabilities, and their gradient, of the whole."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from contracts.errors import SettingsError
from contracts.settings import Policy, Settings
from learner import head as heads
from learner import policy as policies
from learner.adapters import load_policy
from learner.head import Head, Scaling
from tests.learner.families import make_family


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "scaling", [Scaling(), Scaling(0.25), Scaling(1.0, 2.0), Scaling(3.0, 4.0)]
)
def test_logprobs_in_parts_are_those_of_the_whole_vocabulary(
    scaling: Scaling, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(heads.PARTS, "cpu", (3, 24))
    torch.manual_seed(1)
    linear = nn.Linear(6, 50, bias=bias).requires_grad_(False)
    linear.weight.mul_(8.0)
    rows = torch.randn(7, 6, requires_grad=True)
    targets = torch.randint(50, (7,))
    temperature = torch.tensor([0.5, 1.0, 1.5, 1.0, 0.7, 2.0, 1.0])
    weights = torch.randn(7)

    found = Head(linear, scaling).logprobs(rows, targets, temperature)
    [slope] = torch.autograd.grad((found * weights).sum(), rows)

    logits = linear(rows) * scaling.factor
    if scaling.cap:
        logits = scaling.cap * torch.tanh(logits / scaling.cap)
    wanted = (logits / temperature[:, None]).log_softmax(-1)
    wanted = wanted.gather(1, targets[:, None])[:, 0]
    [wanted_slope] = torch.autograd.grad((wanted * weights).sum(), rows)
    assert torch.allclose(found, wanted, atol=2e-6)
    assert torch.allclose(slope, wanted_slope, atol=1e-5)


def test_logits_far_from_zero_do_not_overflow() -> None:
    linear = nn.Linear(1, 4, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[1000.0], [999.0], [-1000.0], [0.0]]))

    found = Head(linear, Scaling()).logprobs(torch.ones(2, 1), torch.tensor([1, 2]), torch.ones(2))

    assert found.tolist() == pytest.approx([-1.3132617, -2000.3132617])


def test_a_model_that_scales_its_logits_in_an_unknown_way_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_family("granite", tmp_path)
    monkeypatch.setattr(policies, "scaling_of", lambda _: Scaling())  # as if it were not known
    chosen = msgspec.structs.replace(settings, policy=Policy(model=str(tmp_path)))

    with pytest.raises(SettingsError, match="GraniteForCausalLM, which scales its logits in a way"):
        load_policy(chosen)
