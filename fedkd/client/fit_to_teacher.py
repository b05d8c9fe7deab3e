"""What a loss takes from the teacher's outputs on all clients' images: a protocol over the exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedkd.client.works import module_of
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Exchange
from fedkd.data.site import ClientSite
from fedkd.losses import DistillationLoss, TeacherFacts, TemperedLoss, entropy_sums, feature_moments, feature_sums
from fedkd.losses.temperature import solve_temperature
from fedkd.teachers import Teacher


def find_facts(
    loss: DistillationLoss, exchange: Exchange, clients: Sequence[int], teacher: Teacher, num_classes: int
) -> TeacherFacts:
    """Find what a loss takes from the teacher's outputs on all clients' images.

    Args:
        loss: The loss.
        exchange: With clients whose sites have the module, and the teacher's outputs for their rows.
        clients: The clients with images.
        teacher: The teacher, with its head.
        num_classes: K.
    """
    temperature = moments = None
    if isinstance(loss, TemperedLoss) and loss.needs_temperature:

        def mean_entropies(temperatures: Sequence[float]) -> list[float]:
            extras = {"temperatures": torch.tensor(temperatures, dtype=torch.float64)}
            updates = exchange(send_entropy_sums, [ClientTask(0, client, extras=extras) for client in clients])
            total = torch.stack([update.extras["sums"] for update in updates]).sum(0)
            return (total[:-1] / total[-1]).tolist()

        temperature = solve_temperature(mean_entropies, num_classes, loss.target_entropy)
    if loss.needs_projector:
        updates = exchange(send_feature_moments, [ClientTask(0, client) for client in clients])
        moments = feature_moments(torch.stack([update.extras["sums"] for update in updates]).sum(0))
    return TeacherFacts(temperature, moments, teacher.frozen_head if loss.needs_head else None)


def send_entropy_sums(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the summed entropy of the teacher's softened outputs at each temperature, and their number: (G + 1,).

    Args:
        site: The client's, with the teacher's logits.
        task: ``extras["temperatures"]``, (G,).
    """
    loss: Any = module_of(site).loss
    if site.rows.teacher_logits is None:
        raise FedKDError(f"Client {site.client} has no teacher outputs.")
    logits = loss.softened(site.rows.teacher_logits.float())
    sums = entropy_sums(logits, task.extras["temperatures"].tolist())
    count = sums.new_tensor([logits.numel() // logits.shape[-1]])
    return ClientUpdate(task.client, len(site.rows), extras={"sums": torch.cat([sums, count])})


def send_feature_moments(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the sums of the teacher's features: ``extras["sums"]``, (D + 2,); see `fedkd.losses.feature_sums`."""
    if site.rows.teacher_features is None:
        raise FedKDError(f"Client {site.client} has no teacher features.")
    return ClientUpdate(task.client, len(site.rows), extras={"sums": feature_sums(site.rows.teacher_features)})
