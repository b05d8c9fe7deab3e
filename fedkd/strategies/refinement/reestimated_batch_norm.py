"""BatchNorm statistics that are measured on the server instead of averaged.

The mean of clients' variances is not the variance of the mean student's activations: with skewed clients, not even near
it. One pass of public images measures the latter, as for averaged weights in Izmailov et al., "Averaging Weights Leads
to Wider Optima and Better Generalization" (arXiv 1803.05407), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.data import FederatedDataModule
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext, Which
from fedkd.strategies.refinement.pools import check_pool
from fedkd.training.module import DistillationModule


class ReestimatedBatchNorm(Strategy):
    """After aggregation the student's BatchNorm statistics are measured anew on images that belong to no client.

    They are the mean over the batches of one pass of images as they are, ``data.eval_batch_size`` in a batch, or 512 if
    that is not set. In a `Compose` it stands behind what changes weights on the server.

    Args:
        images: "public" is the public split, "shared" what ``data.shared`` gives to all clients.
    """

    changes_student = True

    def __init__(self, images: Which = "public") -> None:
        self.images = images

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Ask for public images, and for a student that keeps statistics."""
        if not any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.student.modules()):
            raise FedKDError("ReestimatedBatchNorm: the student has no BatchNorm whose statistics could be measured.")
        check_pool(self.images, datamodule)

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> ServerState:
        """Measure."""
        return context.reestimate_batch_norm(state, context.pool(self.images))
