"""Small problems for client corrections: a parabola a client, whose rounds can be written down; and a small network."""

from __future__ import annotations

import torch
from helpers import module, weights
from torch import nn

import fedkd
from fedkd.partition import Given
from fedkd.students.layers import BatchNorm2d

CURVATURE = torch.tensor([1.0, 2.0, 5.0])
GOAL = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.0], [0.0, -2.0, 1.0]])


class Point(nn.Module):
    """A student whose logits are its one parameter, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.point = nn.Parameter(torch.tensor([0.5, -0.5, 0.25]))

    def forward(self, images):
        return self.point.expand(len(images), -1)


class Parabola(fedkd.DistillationLoss):
    """``curvature / 2 * |point - goal|^2``, both of the image's class: its gradient is curvature * (point - goal)."""

    def forward(self, student, targets, teacher):
        distance = ((student.logits - GOAL[targets]) ** 2).sum(dim=1)
        return {"loss": (0.5 * CURVATURE[targets] * distance).mean()}


def parabolas(sizes=(20, 20, 20), batch_size=10):
    """Return data where client k holds ``sizes[k]`` images, all of class k."""
    owners = [client for client, size in enumerate(sizes) for _ in range(size)]
    pixels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    images = [[(pixels, label) for label in labels] for labels in (owners, range(3))]
    return fedkd.FederatedDataModule(
        fedkd.data.Datasets(*images, classes=["a", "b", "c"]),
        num_clients=len(sizes),
        partitioner=Given(owners),
        batch_size=batch_size,
    )


def point(lr=0.1, momentum=0.0):
    """Return a module with a `Point` on the `Parabola` of its client."""
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)  # noqa: E731
    return module(Point(), loss=Parabola(), optimizer=optimizer)


def gradient(client, point):
    """Return the client's, which holds the class of its number."""
    return CURVATURE[client] * (point - GOAL[client])


def optimum(shares):
    """Return the point where the clients' gradients cancel."""
    pull = torch.tensor(shares) * CURVATURE
    return (pull[:, None] * GOAL).sum(dim=0) / pull.sum()


def steps(client, point, count, lr, correction=lambda point: 0.0, momentum=0.0):
    """Take SGD steps along the client's gradient plus a correction."""
    velocity = torch.zeros(3)
    for _ in range(count):
        velocity = momentum * velocity + gradient(client, point) + correction(point)
        point = point - lr * velocity
    return point


class Network(nn.Module):
    """A small network with BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(self.body(images))


def network(**arguments):
    """Return a module with a `Network` whose first weights are always the same."""
    torch.manual_seed(0)
    return module(Network(), **arguments)


def federate(run_dir, trained, data, strategy, rounds=2, trainer=None, **arguments):
    """Run a federation and return the global student's state."""
    trainer = {"accelerator": "cpu", **(trainer or {})}
    federation = fedkd.Federation(rounds=rounds, run_dir=run_dir, strategy=strategy, trainer=trainer, **arguments)
    federation.fit(trained, data, ckpt_path="last" if run_dir.exists() else None)
    return weights(trained)
