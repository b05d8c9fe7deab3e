"""Federated algorithms, one file each."""

from fedkd.server.strategies.base import Strategy
from fedkd.server.strategies.combine import Combine
from fedkd.server.strategies.fedavg import FedAvg

__all__ = ["Combine", "FedAvg", "Strategy"]
