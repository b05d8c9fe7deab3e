"""Callbacks of a run's rounds: `EarlyStopping`, `SaveBest`, `ClientTable`, and the base of your own."""

from fedkd.server.callbacks.base import RoundCallback, RoundEvent, RunEvent, check_callbacks
from fedkd.server.callbacks.client_table import ClientTable
from fedkd.server.callbacks.early_stopping import EarlyStopping
from fedkd.server.callbacks.save_best import SaveBest

__all__ = ["ClientTable", "EarlyStopping", "RoundCallback", "RoundEvent", "RunEvent", "SaveBest", "check_callbacks"]
