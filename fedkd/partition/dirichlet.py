"""Label skew of any strength, by a Dirichlet distribution.

There are two formulations with this name. This is the one of Yurochkin et al. 2019, "Bayesian Nonparametric Federated
Learning of Neural Networks" (arXiv 1905.12022): for each class k, draw p_k ~ Dir_J(alpha) over the J clients and give
client j the share p_kj of the class. Shards then differ in size and in label distribution. Hsu et al. 2019, "Measuring
the Effects of Non-Identical Data Distribution for Federated Visual Classification" (arXiv 1909.06335), instead draw a
label distribution for each client, with equal sizes. The same alpha does not mean the same skew in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.partition.drawn import DrawnPartitioner
from fedkd.partition.partitioner import positions_by_value


@dataclass(frozen=True)
class Dirichlet(DrawnPartitioner):
    """Splits each class over the clients in proportions drawn from a symmetric Dirichlet distribution.

    Clients may have no images. By default no draw is rejected, so the distribution is exactly Dirichlet.

    Args:
        alpha: The concentration, the same for every client. Toward 0 each class goes entirely to one client; at 1 all
            proportions are equally likely; toward infinity every client gets an equal part of every class.
        min_examples: The minimum number of images per client. The partition is drawn again until every client has it.

    Raises:
        FedKDError: If ``alpha`` is not between 1e-100 and 1e100 or ``min_examples`` is not an integer of at least 0.
            When called, if no draw gives every client ``min_examples``.
    """

    def draw(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `DrawnPartitioner.draw`."""
        classes, labels = np.unique(labels, return_inverse=True)
        clients = np.empty(len(labels), dtype=np.int64)
        for members in positions_by_value(labels, len(classes)):
            shares = draw_proportions(self.alpha, num_clients, rng)  # (J,)
            counts = round_to_counts(shares, len(members), rng)  # (J,), sums to len(members)
            clients[rng.permutation(members)] = np.repeat(np.arange(num_clients), counts)
        return clients


def draw_proportions(alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    r"""Draw p ~ Dir(alpha, ..., alpha), finite and summing to 1 for every alpha > 0.

    A Dirichlet draw is a vector of Gamma(alpha) draws divided by its sum. For small alpha all of these draws underflow
    to 0, but their logarithms do not. Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha) in distribution, so

    .. math:: p = \mathrm{softmax}\left(\log G + \frac{\log U}{\alpha}\right), \quad G \sim \Gamma(\alpha + 1).

    Args:
        alpha: The concentration of each component.
        size: The number of components, J.
        rng: Makes the draw.

    Returns:
        Proportions, float64 (J,).
    """
    log_gamma = np.log(rng.standard_gamma(alpha + 1.0, size)) + np.log1p(-rng.random(size)) / alpha
    weights = np.exp(log_gamma - log_gamma.max())
    return weights / weights.sum()


def round_to_counts(shares: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Round ``total * shares`` to integers that sum to ``total``, without bias.

    The cumulative sum is rounded with one random offset for all entries (systematic sampling, Madow 1949). Each count
    is the floor or the ceiling of its exact value, and its mean is the exact value. The largest remainder method is
    biased: with 100 images, a client with a share of 0.1% would never get one, instead of one time in ten.

    Args:
        shares: Proportions that sum to 1, (J,).
        total: The number of images to distribute.
        rng: Draws the offset.

    Returns:
        Counts, int64 (J,).
    """
    edges = np.floor(np.cumsum(shares) * total + rng.random()).astype(np.int64)
    edges[-1] = total
    return np.diff(np.minimum(edges, total), prepend=0)
