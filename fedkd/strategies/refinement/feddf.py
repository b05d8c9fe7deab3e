"""FedDF: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning".

arXiv 2006.07242, algorithm 1: after averaging, the server distills the mean of the clients' logits into the student on
unlabeled images.
"""

from __future__ import annotations

from fedkd.strategies.context import Which
from fedkd.strategies.refinement.server_distillation import ServerDistillation


class FedDF(ServerDistillation):
    """Distils the ensemble of the round's clients into their average, with or without the foundation model.

    Where the paper takes up to 10,000 steps and stops early on labeled validation images, the number of passes is
    fixed here: no label is used. Its Adam with a cosine from 1e-3 and its temperature of 1 are the defaults.

    Args:
        teacher_weight: Of the foundation model beside the ensemble, whose weight is 1; 0 is the paper's.
        epochs: Passes over the images in every round; with 0 it is FedAvg.
        lr: Adam's first learning rate.
        temperature: T > 0.
        images: As for `ServerDistillation`.
    """

    def __init__(
        self,
        teacher_weight: float = 0.0,
        epochs: int = 1,
        lr: float = 1e-3,
        temperature: float = 1.0,
        images: Which = "public",
    ) -> None:
        super().__init__(
            teacher_weight, ensemble_weight=1.0, epochs=epochs, lr=lr, temperature=temperature, images=images
        )
