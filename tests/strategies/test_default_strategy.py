"""What a federation does where no strategy, and no loss, is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import BrightRowTeacher, images, module, same, weights
from torch import Tensor, nn

import fedkd
from fedkd.data import FederatedDataModule
from fedkd.losses import DKD, CenteredDKD, FrozenHead
from fedkd.partition import ClassSpecific
from fedkd.strategies import ClosedFormHead, Compose, FedAvg, FedAvgM, FedProx, ServerDistillation, Strategy
from fedkd.strategies.default import default_strategy
from fedkd.teachers import EnsembleTeacher, GaussianPrivacy, RidgeHead


def data(public_fraction: float = 0.0) -> FederatedDataModule:
    return FederatedDataModule.from_datasets(
        images(60), images(30, seed=1), num_clients=3, partitioner=ClassSpecific(1), public_fraction=public_fraction
    )


class NoLinear(nn.Module):
    """Nothing in it has a place for a head in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) @ self.weight.T


def convolutions(channels: int) -> nn.Module:
    body = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(channels, 3))


def distilled_too(head: Strategy) -> Strategy:
    return Compose([ServerDistillation(), head])


def with_momentum(head: Strategy) -> Strategy:
    return Compose([FedAvgM(momentum=0.5), head])


@pytest.mark.parametrize(
    ("student", "teacher", "public_fraction", "loss", "strategy", "found"),
    [
        (None, True, 0.2, "auto", distilled_too(ClosedFormHead(inputs="last", every=None)), CenteredDKD()),
        (convolutions(4), True, 0.2, "auto", distilled_too(ClosedFormHead(every=None)), CenteredDKD()),
        (convolutions(2049), True, 0.2, "auto", ServerDistillation(), DKD()),
        (convolutions(4), True, 0.0, "auto", with_momentum(ClosedFormHead()), CenteredDKD()),
        (convolutions(4), True, 0.0, DKD(nckd_weight=3.0), with_momentum(ClosedFormHead()), DKD(nckd_weight=3.0)),
        # 17 * 257 > 2,048
        (convolutions(257), True, 0.0, "auto", with_momentum(ClosedFormHead(inputs="last")), CenteredDKD()),
        (None, True, 0.0, "auto", with_momentum(ClosedFormHead(inputs="last")), CenteredDKD()),
        (convolutions(2049), True, 0.0, "auto", FedAvg(), DKD()),
        (NoLinear(), True, 0.0, "auto", FedAvg(), DKD()),
        (convolutions(4), True, 0.0, FrozenHead(), FedAvg(), FrozenHead()),
        (None, False, 0.2, "auto", FedAvg(), DKD()),
    ],
)
def test_the_default_is_what_suits_the_run(tmp_path, student, teacher, public_fraction, loss, strategy, found) -> None:
    torch.manual_seed(0)
    start = None if student is None else {name: value.clone() for name, value in student.state_dict().items()}

    def fit(name: str, **arguments: object) -> tuple[dict, fedkd.DistillationModule]:
        if student is not None:
            student.load_state_dict(start)
        trained = module(student, teacher=BrightRowTeacher() if teacher else None, loss=loss)
        summary = fedkd.Federation(2, run_dir=tmp_path / name, **arguments).fit(trained, data(public_fraction))
        return summary, trained

    by_default, trained = fit("default")
    assert by_default["strategy"] == repr(strategy)
    assert repr(trained.loss) == repr(found)
    reached = weights(trained)
    assert same(reached, weights(fit("named", strategy=strategy)[1]))
    if not isinstance(strategy, FedAvg):
        assert not same(reached, weights(fit("averaged", strategy=FedAvg())[1]))


def test_beside_a_private_head_no_sums_without_noise_are_sent() -> None:
    def strategies(teacher: fedkd.Teacher) -> list[str]:
        trained = module("cnn", teacher=teacher)
        trained.build(("0", "1", "2"), (1, 8, 8))
        found = [default_strategy(trained, has_public) for has_public in (False, True)]
        return [repr(each) for each in found]

    open_head, private = BrightRowTeacher(), BrightRowTeacher()
    private.head_method = RidgeHead(privacy=GaussianPrivacy(epsilon=8.0))
    expected = [with_momentum(ClosedFormHead()), distilled_too(ClosedFormHead(every=None))]
    assert strategies(open_head) == [repr(each) for each in expected]
    without_head = [repr(FedAvg()), repr(ServerDistillation())]
    assert strategies(private) == without_head
    assert strategies(EnsembleTeacher([open_head, private])) == without_head


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        (FedAvg(), DKD),
        (ClosedFormHead(), CenteredDKD),
        (Compose([FedProx(), ClosedFormHead()]), CenteredDKD),
        (Compose([Compose([FedProx()]), ClosedFormHead()]), CenteredDKD),
        (Compose([FedProx(), FedAvg()]), DKD),
    ],
)
def test_the_default_loss_is_what_suits_the_strategy(strategy: Strategy, loss: type) -> None:
    trained = module(teacher=BrightRowTeacher())
    trained.use_default_loss(strategy.default_loss())
    assert type(trained.loss) is loss


def test_a_loss_that_was_found_for_one_run_does_not_stay_for_the_next(tmp_path: Path) -> None:
    trained = module("cnn", teacher=BrightRowTeacher())
    for name, strategy, loss in (("one", ClosedFormHead(), CenteredDKD), ("two", FedAvg(), DKD)):
        fedkd.Federation(1, strategy=strategy, run_dir=tmp_path / name).fit(trained, data())
        assert isinstance(trained.loss, loss)


def test_what_was_chosen_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path)
    assert federation.strategy == "auto"
    with caplog.at_level("INFO"):
        summary = federation.fit(module("cnn", teacher=BrightRowTeacher()), data())
    assert federation.strategy == "auto"  # the configuration never shows one that was not configured
    assert f"strategy auto: {summary['strategy']}" in caplog.text
    assert "loss auto: CenteredDKD(" in caplog.text


def test_a_wrong_loss_is_one_line() -> None:
    with pytest.raises(fedkd.FedKDError, match=r"'aut'.*auto"):
        fedkd.DistillationModule(loss="aut")


def test_one_federation_suits_each_run(tmp_path: Path) -> None:
    federation = fedkd.Federation(rounds=1)
    said = []
    for name, public_fraction in (("with", 0.2), ("without", 0.0)):
        federation.run_dir = tmp_path / name
        data = FederatedDataModule.from_datasets(images(30), images(30, seed=1), public_fraction=public_fraction)
        said.append(federation.fit(module(teacher=BrightRowTeacher()), data)["strategy"])
    assert ["ServerDistillation" in text for text in said] == [True, False]
    assert all("ClosedFormHead" in text for text in said)
