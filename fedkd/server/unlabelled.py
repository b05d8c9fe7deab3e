"""Work on images without labels that belong to no client: asking students, distilling into one, BatchNorm statistics.

It serves the server (`fedkd.server.context.ServerContext`) and clients that learn from a consensus
(`fedkd.server.mutual.MutualFederation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.client import fit, make_trainer, quiet_lightning
from fedkd.data import Augmentation, BatchLoader, Views
from fedkd.data.shared import Unlabelled
from fedkd.losses.kd import kd_divergence
from fedkd.server.evaluation import evaluation_arguments
from fedkd.tensors import Tensors, load_state, split_state

Model = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # parameters and buffers, as `split_state` gives them


@dataclass(frozen=True, eq=False)
class CommonImages:
    """P images that anybody may look at, and how they are looked at.

    Args:
        images: Without labels.
        batch_size: Of training.
        eval_batch_size: Of looking.
        augmentation: What is done to images that are trained on.
        views: The looks that a judgement is made on: fixed ones; None is the image itself.
        teacher_logits: What the foundation model says of them, (P, K), or (P, V, K) for ``views``; None without one.
    """

    images: Unlabelled
    batch_size: int
    eval_batch_size: int
    augmentation: Augmentation | Views | None = None
    views: Views | None = None
    teacher_logits: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """Where the images lie in their ImageSet, int64 (P,): what is drawn for an image depends on it."""
        return torch.from_numpy(self.images.indices)

    def training_loader(self, logits: Tensor, seed: int, device: torch.device) -> BatchLoader:
        """Return shuffled, augmented batches whose ``teacher_logits`` are rows of ``logits``, (P, K) or (P, V, K)."""
        table = logits.new_zeros(len(self.images.data), *logits.shape[1:])
        table[self.positions] = logits
        return BatchLoader(
            self.images.data,
            self.positions,
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=self.augmentation,
            teacher_logits=table,
            device=device,
        )

    def loader(self, device: torch.device) -> BatchLoader:
        """Return the images themselves, in order."""
        return BatchLoader(self.images.data, self.positions, batch_size=self.eval_batch_size, device=device)

    def view_loaders(self, device: torch.device) -> list[BatchLoader]:
        """Return all images in order for each of ``views``; without views, once."""
        if self.views is None:
            return [self.loader(device)]
        positions, data, loaders = self.positions, self.images.data, []
        for view in range(self.views.count):
            draw = self.views.draw(positions, torch.full_like(positions, view))
            seen = Unlabelled.of(self.views.apply(data.images[positions], draw), data.classes)
            loaders.append(BatchLoader(seen.data, seen.indices, batch_size=self.eval_batch_size, device=device))
        return loaders


class Asked(LightningModule):
    """A student that is asked for its logits."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return logits (B, K), float32."""
        return self.student(batch[0]).float()


class Taught(LightningModule):
    """A student that learns from logits alone: ``weight * T^2 * KL``, with Adam and a cosine down to 0.

    Args:
        student: Images (B, C, H, W) to logits (B, K).
        num_steps: In all; the learning rate is 0 after them.
        lr: The first learning rate.
        temperature: T.
        weight: Of the loss.
    """

    def __init__(self, student: nn.Module, num_steps: int, lr: float, temperature: float, weight: float) -> None:
        super().__init__()
        self.student = student
        self.num_steps, self.lr, self.temperature, self.weight = num_steps, lr, temperature, weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss on a `fedkd.data.Batch`; its targets are blank and not looked at."""
        divergence = kd_divergence(self.student(batch.images), batch.teacher_logits, self.temperature)
        return self.weight * self.temperature**2 * divergence

    def configure_optimizers(self) -> Any:
        """Return Adam and its schedule, a step of which is a batch."""
        optimizer = torch.optim.Adam((p for p in self.student.parameters() if p.requires_grad), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def logits_of(student: nn.Module, models: Iterable[Model], images: CommonImages, trainer: Mapping[str, Any]) -> Tensor:
    """Ask several models for their logits and return the mean of these, (P, K), or (P, V, K) over the images' views.

    Lin et al. (arXiv 2006.07242), algorithm 1, line 10: the ensemble's answer is that of its members' mean logits.

    Args:
        student: Its weights are overwritten by each model's.
        models: At least one.
        images: What they judge.
        trainer: Arguments of the clients' Trainer: precision and device are taken from them.
    """
    with quiet_lightning():
        asker = make_trainer(evaluation_arguments(trainer))
        loaders = images.view_loaders(asker.strategy.root_device)
        total: Tensor | float = 0.0
        count = 0
        for parameters, buffers in models:
            load_state(student, parameters, buffers)
            answers = [torch.cat(asker.predict(Asked(student), dataloaders=loader)) for loader in loaders]  # type: ignore[arg-type]
            total = total + torch.stack(answers, dim=1).cpu()  # (P, V, K)
            count += 1
    mean = total / count
    assert isinstance(mean, Tensor)
    return mean[:, 0] if images.views is None else mean


def distill(
    student: nn.Module,
    model: Model,
    images: CommonImages,
    logits: Tensor,
    *,
    epochs: int,
    lr: float,
    temperature: float,
    trainer: Mapping[str, Any],
    seed: int,
    weight: float = 1.0,
) -> tuple[Tensors, Tensors]:
    """Teach a model what the logits say of unlabelled images.

    Args:
        student: Its weights are overwritten.
        model: What the training starts from.
        images: What is looked at.
        logits: What is taught, (P, K) or (P, V, K) over the images' views.
        epochs: Passes over the images; with 0 the model comes back as it was.
        lr: Adam's first learning rate.
        temperature: T > 0 that softens both sides.
        trainer: Arguments of the clients' Trainer: precision and device are taken from them.
        seed: Decides order and augmentation. Whatever a student draws itself (dropout) is the caller's to seed.
        weight: Of the loss.

    Returns:
        Its parameters and buffers, in the dtypes of ``model``.
    """
    if not epochs:
        return dict(model[0]), dict(model[1])
    load_state(student, *model)
    student.train()
    with quiet_lightning():
        teacher = make_trainer({**evaluation_arguments(trainer), "max_epochs": epochs})
        loader = images.training_loader(logits, seed, teacher.strategy.root_device)
        fit(teacher, Taught(student, epochs * len(loader), lr, temperature, weight), loader)
    return like(split_state(student), model)


def reestimate_batch_norm(
    student: nn.Module, model: Model, images: CommonImages, trainer: Mapping[str, Any]
) -> tuple[Tensors, Tensors]:
    """Measure a model's BatchNorm statistics anew: the mean over the batches of one pass, all of one weight.

    Args:
        student: Its weights are overwritten.
        model: What is measured; parameters stay as they are.
        images: What it looks at, not augmented, in batches of ``eval_batch_size``.
        trainer: As for `distill`.

    Returns:
        Parameters and buffers, in the dtypes of ``model``; a layer's ``num_batches_tracked`` counts these batches.
    """
    load_state(student, *model)
    layers = batch_norms(student)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative mean
        with quiet_lightning():
            asker = make_trainer(evaluation_arguments(trainer))
            asker.predict(Measured(student), dataloaders=images.loader(asker.strategy.root_device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return dict(model[0]), like(split_state(student), model)[1]


class Measured(Asked):
    """A student whose BatchNorm layers, and they alone, are in training mode while it is asked."""

    def on_predict_epoch_start(self) -> None:
        """Let the layers take their batches' statistics; Lightning gives all modes back afterwards."""
        for layer in batch_norms(self.student):
            layer.train()


def batch_norms(student: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    return [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def like(found: Model, model: Model) -> tuple[Tensors, Tensors]:
    """Return a model in the dtypes of another: training in a true half precision leaves it in that."""
    parameters, buffers = (
        {name: value.to(old[name].dtype) for name, value in new.items()} for new, old in zip(found, model, strict=True)
    )
    return parameters, buffers
