"""What a federation does where no strategy is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import BrightRowTeacher, images, module, same, weights

import fedkd
from fedkd.data import FederatedDataModule
from fedkd.partition import ClassSpecific
from fedkd.strategies import FedAvg, ServerDistillation, Strategy


@pytest.mark.parametrize(
    ("teacher", "public_fraction", "strategy"),
    [(True, 0.2, ServerDistillation(epochs=5)), (True, 0.0, FedAvg()), (False, 0.2, FedAvg())],
)
def test_the_default_is_what_suits_the_run(
    tmp_path: Path, teacher: bool, public_fraction: float, strategy: Strategy
) -> None:
    def fit(name: str, **arguments: object) -> tuple[dict, dict]:
        data = FederatedDataModule.from_datasets(
            images(60), images(30, seed=1), num_clients=3, partitioner=ClassSpecific(1), public_fraction=public_fraction
        )
        trained = module(teacher=BrightRowTeacher() if teacher else None)
        summary = fedkd.Federation(rounds=2, run_dir=tmp_path / name, **arguments).fit(trained, data)
        return summary, weights(trained)

    by_default, trained = fit("default")
    assert by_default["strategy"] == repr(strategy)
    assert same(trained, fit("named", strategy=strategy)[1])
    others_differ = teacher and public_fraction
    assert same(trained, fit("averaged", strategy=FedAvg())[1]) != bool(others_differ)


def test_the_strategy_is_known_before_fit_and_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = FederatedDataModule.from_datasets(images(30), images(30, seed=1), public_fraction=0.2)
    trained = module(teacher=BrightRowTeacher())
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path)
    assert federation.strategy == "auto"
    assert isinstance(federation.resolve_strategy(trained, data), ServerDistillation)
    with caplog.at_level("INFO"):
        summary = federation.fit(trained, data)
    assert federation.strategy == "auto"  # the configuration never shows one that was not configured
    assert f"strategy auto: {summary['strategy']}" in caplog.text
    named = fedkd.Federation(strategy=FedAvg())
    assert isinstance(named.resolve_strategy(trained, data), FedAvg)


def test_one_federation_suits_each_run(tmp_path: Path) -> None:
    federation = fedkd.Federation(rounds=1)
    said = []
    for name, public_fraction in (("with", 0.2), ("without", 0.0)):
        federation.run_dir = tmp_path / name
        data = FederatedDataModule.from_datasets(images(30), images(30, seed=1), public_fraction=public_fraction)
        said.append(federation.fit(module(teacher=BrightRowTeacher()), data)["strategy"])
    assert [text.partition("(")[0] for text in said] == ["ServerDistillation", "FedAvg"]
