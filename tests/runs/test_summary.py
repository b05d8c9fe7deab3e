"""The rows of ``metrics.csv``."""

from __future__ import annotations

import pytest

from fedkd.core.messages import ClientUpdate
from fedkd.runs.summary import round_row


def test_a_term_is_the_mean_over_the_clients_that_have_it():
    updates = [
        ClientUpdate(0, 10, 1, metrics={"train/loss": 1.0, "train/extra": 4.0}),
        ClientUpdate(1, 30, 1, metrics={"train/loss": 3.0}),
        ClientUpdate(2, 60, 0),  # it took no step
    ]
    row = round_row(0, updates, {}, val_accuracy={}, bytes_up=0, bytes_down=0, seconds=0.0)
    assert row["train/loss"] == pytest.approx((10 * 1.0 + 30 * 3.0) / 40)
    assert row["train/extra"] == 4.0
    assert row["num_examples"] == 100
