"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data".

arXiv 1602.05629, algorithm 1: w_{t+1} = w_t + sum_k (n_k / n) (w^k_{t+1} - w_t) over the cohort.
"""

from __future__ import annotations

from fedkd.strategies.base import Strategy


class FedAvg(Strategy):
    """Average the clients' students, weighted by their numbers of examples; the default of every hook."""
