"""What every student must do, with either norm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkd.students import create, students

EVERY = [(name, norm) for name in students for norm in ("batch", "group")] + [("cnn", "none")]
every_student = pytest.mark.parametrize(("name", "norm"), EVERY)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def step(student: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    student.zero_grad()
    loss = F.cross_entropy(student(images), targets)
    loss.backward()
    with torch.no_grad():
        for p in student.parameters():
            p -= 0.01 * p.grad
    return loss.item()


@every_student
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (8, 3), (28, 1), (32, 3)])
def test_a_batch_of_one_image_trains(name: str, norm: str, size: int, channels: int) -> None:
    student = create(name, 7, channels, size, norm).train()
    image, target = torch.rand(1, channels, size, size), torch.tensor([3])
    assert student(image).shape == (1, 7)
    losses = [step(student, image, target) for _ in range(3)]
    assert losses[2] < losses[0]
    assert all(value.isfinite().all() for value in student.state_dict().values())
    reached = [bool(p.grad.any()) for p in student.parameters()]
    assert reached[0]  # the gradient comes all the way through
    assert sum(reached) > 0.9 * len(reached)


@every_student
def test_loss_falls_on_eight_images(name: str, norm: str) -> None:
    student = create(name, 8, 3, 16, norm).train()
    images, targets = torch.rand(8, 3, 16, 16), torch.arange(8)
    losses = [step(student, images, targets) for _ in range(15)]
    assert losses[-1] < 0.95 * losses[0]


@every_student
def test_only_parameters_and_running_statistics_are_kept(name: str, norm: str) -> None:
    student = create(name, 10, norm=norm)
    state = student.state_dict()
    buffers = set(state) - {key for key, _ in student.named_parameters()}
    assert {key.rsplit(".", 1)[1] for key in buffers} == (
        {"running_mean", "running_var", "num_batches_tracked"} if norm == "batch" else set()
    )
    assert {key for key, _ in student.named_buffers()} == buffers
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


@every_student
def test_training_and_evaluation_differ_only_by_batch_norm(name: str, norm: str) -> None:
    student = create(name, 10, image_size=16, norm=norm)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        trained, evaluated = student.train()(images), student.eval()(images)
    assert torch.equal(trained, evaluated) == (norm != "batch")


@every_student
def test_an_image_is_judged_alone(name: str, norm: str) -> None:
    student = create(name, 10, image_size=16, norm=norm).eval()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        together, alone = student(images), torch.cat([student(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0
