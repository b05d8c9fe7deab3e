"""Work on images without labels that belong to no client: asking students, distilling into one.

It serves the server (`fedkd.server.context.ServerContext`) and clients that learn from a consensus
(`fedkd.server.mutual.MutualFederation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fedkd.core.tensors import Tensors, load_state, split_state
from fedkd.losses.kd import kd_divergence
from fedkd.training.common_images import CommonImages
from fedkd.training.evaluation import evaluation_arguments
from fedkd.training.trainer import fit, make_trainer, quiet_lightning

Model = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # parameters and buffers, as `split_state` gives them


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


def like(found: Model, model: Model) -> tuple[Tensors, Tensors]:
    """Return a model in the dtypes of another: training in a true half precision leaves it in that."""
    parameters, buffers = (
        {name: value.to(old[name].dtype) for name, value in new.items()} for new, old in zip(found, model, strict=True)
    )
    return parameters, buffers
