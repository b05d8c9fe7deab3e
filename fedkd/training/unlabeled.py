"""Work on unlabeled images: predicting with students, distilling logits into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fedkd.core.messages import Weights
from fedkd.core.modes import let_train
from fedkd.core.tensors import load_state, split_state
from fedkd.data.loader import BatchLoader
from fedkd.data.pool import Pool
from fedkd.data.rows import Rows
from fedkd.losses.kd import kd_divergence
from fedkd.students import features_and_logits, trained_part
from fedkd.training.mixed import mean_of_pair
from fedkd.training.trainer import evaluation_arguments, evaluator_for, fit, predict, trainer_for


class Predictor(LightningModule):
    """Predicts logits with a student."""

    runs_lean: ClassVar[bool] = True

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return logits (B, K), float32."""
        return self.student(batch[0]).float()


class FeaturePredictor(Predictor):
    """Predicts a student's features."""

    runs_lean: ClassVar[bool] = True

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return features (B, D), float32."""
        student: Any = self.student
        return student.features(batch[0]).float()


class Distiller(LightningModule):
    """Trains a student on logits alone: ``weight * T^2 * KL``, with Adam and a cosine down to 0.

    Args:
        student: Images (B, C, H, W) to logits (B, K).
        lr: The first learning rate.
        temperature: T.
        weight: Of the loss.

    Attributes:
        num_steps: In all; the learning rate is 0 after them.
    """

    runs_lean: ClassVar[bool] = True

    def __init__(self, student: nn.Module, lr: float, temperature: float, weight: float) -> None:
        super().__init__()
        self.student = student
        self.num_steps, self.lr, self.temperature, self.weight = 1, lr, temperature, weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss on a `fedkd.data.Batch`; its targets are blank and not used."""
        logits = self.student(batch.images)
        divergence = mean_of_pair(batch, batch.teacher_logits, lambda t: kd_divergence(logits, t, self.temperature))
        return self.weight * self.temperature**2 * divergence

    def epoch_metrics(self) -> dict[str, Any]:
        """Return nothing: the server's losses are not logged."""
        return {}

    def configure_optimizers(self) -> Any:
        """Return Adam and its schedule, a step of which is a batch."""
        optimizer = torch.optim.Adam((p for p in self.student.parameters() if p.requires_grad), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def predict_features(student: Any, rows: Rows, trainer: Mapping[str, Any], batch_size: int | None = None) -> Tensor:
    """Return a student's features of images as they are, (n, D) float32 on the CPU.

    Args:
        student: It has ``features(images)`` and ``num_features``: a `fedkd.students.ClosedFormStudent`.
        rows: The images, n >= 0.
        trainer: Arguments of the clients' Trainer: precision and device are taken from them.
        batch_size: Images in a batch; None suits the device.
    """
    if not len(rows):
        return torch.zeros(0, student.num_features)
    module = FeaturePredictor(student)
    predictor = evaluator_for(module, trainer)
    loader = BatchLoader(rows, batch_size=batch_size, device=predictor.strategy.root_device)
    return predict(predictor, module, loader).cpu()


def predict_logits(student: nn.Module, models: Sequence[Weights], pool: Pool, trainer: Mapping[str, Any]) -> Tensor:
    """Return the mean of several models' logits for a pool, (P, K), or (P, V, K) of the pool's views.

    Lin et al. (arXiv 2006.07242), algorithm 1, line 10: an ensemble predicts by its members' mean logits.

    Args:
        student: A student of the models' kind. Its weights are overwritten by each model's.
        models: At least one.
        pool: The images.
        trainer: Arguments of the clients' Trainer: precision and device are taken from them.
    """
    total: Tensor | float = 0.0
    module = Predictor(trained_part(student))
    predictor = evaluator_for(module, trainer)
    for model in models:
        load_state(student, model.parameters, model.buffers)
        loaders = pool.view_loaders(predictor.strategy.root_device)
        found = [predict(predictor, module, loader) for loader in loaders]
        total = total + torch.stack(found, dim=1).cpu()  # (P, V, K)
    mean = total / len(models)
    assert isinstance(mean, Tensor)
    return mean[:, 0] if pool.views is None else mean


def distill(
    student: nn.Module,
    model: Weights,
    pool: Pool,
    logits: Tensor,
    *,
    epochs: int,
    lr: float,
    temperature: float,
    trainer: Mapping[str, Any],
    seed: int,
    weight: float = 1.0,
) -> Weights:
    """Distill logits for unlabeled images into a model.

    Args:
        student: A student of the model's kind. Its weights are overwritten.
        model: The weights that training starts from.
        pool: The images.
        logits: Their targets, (P, K), or (P, V, K) of the pool's views.
        epochs: Passes over the images; 0 returns the model as it was.
        lr: Adam's first learning rate.
        temperature: T > 0 that softens both sides.
        trainer: Arguments of the clients' Trainer: precision and device are taken from them.
        seed: Decides order and augmentation. The caller seeds what a student draws itself (dropout).
        weight: Weight of the loss.

    Returns:
        The trained model, in the dtypes of ``model``.
    """
    if not epochs:
        return model
    load_state(student, model.parameters, model.buffers)
    let_train(student)
    module = Distiller(trained_part(student), lr, temperature, weight)
    distiller = trainer_for(module, {**evaluation_arguments(trainer), "max_epochs": epochs})
    loader = pool.training_loader(logits, seed, distiller.strategy.root_device)
    module.num_steps = epochs * len(loader)
    fit(distiller, module, loader)
    return like(Weights(*split_state(student)), model)


class FeatureRegressor(LightningModule):
    """Trains a student's body on features alone: the mean squared error of a linear map of its own, with Adam.

    Args:
        student: Images (B, C, H, W) to logits.
        layer: The name of its last linear layer, whose inputs (B, D) are its features.
        dim: q, the size of the targets.
        lr: The first learning rate, which follows a cosine down to 0.

    Attributes:
        num_steps: In all; the learning rate is 0 after them.
    """

    runs_lean: ClassVar[bool] = True

    def __init__(self, student: nn.Module, layer: str, dim: int, lr: float) -> None:
        super().__init__()
        last = student.get_submodule(layer)
        assert isinstance(last, nn.Linear)
        self.student, self.layer, self.projector = student, layer, nn.Linear(last.in_features, dim)
        self.num_steps, self.lr = 1, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss on a `fedkd.data.Batch` whose ``teacher_logits`` are the targets, (B, q)."""
        features, _ = features_and_logits(self.student, batch.images, self.layer)
        found = self.projector(features).float()
        return mean_of_pair(batch, batch.teacher_logits, lambda targets: F.mse_loss(found, targets))

    def epoch_metrics(self) -> dict[str, Any]:
        """Return nothing: the server's losses are not logged."""
        return {}

    def configure_optimizers(self) -> Any:
        """Return Adam and its schedule, a step of which is a batch."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def distill_features(
    student: nn.Module,
    model: Weights,
    layer: str,
    pool: Pool,
    targets: Tensor,
    *,
    epochs: int,
    lr: float,
    trainer: Mapping[str, Any],
    seed: int,
) -> Weights:
    """Train a model's body to predict features of unlabeled images, through a linear map that is thrown away.

    Args:
        student: A student of the model's kind. Its weights are overwritten.
        model: The weights that training starts from.
        layer: The student's last linear layer, by its name in `fedkd.students.trained_part`.
        pool: The P images, augmented as on clients.
        targets: For each image itself, float32 (P, q).
        epochs: Passes over the images.
        lr: Adam's first learning rate.
        trainer: As for `distill`.
        seed: As for `distill`. The caller seeds the linear map's first weights.

    Returns:
        The trained model, in the dtypes of ``model``.
    """
    load_state(student, model.parameters, model.buffers)
    let_train(student)
    module = FeatureRegressor(trained_part(student), layer, targets.shape[1], lr)
    regressor = trainer_for(module, {**evaluation_arguments(trainer), "max_epochs": epochs})
    loader = pool.training_loader(targets, seed, regressor.strategy.root_device)
    module.num_steps = epochs * len(loader)
    fit(regressor, module, loader)
    return like(Weights(*split_state(student)), model)


def like(found: Weights, model: Weights) -> Weights:
    """Return a model in the dtypes of another: training in a true half precision leaves it in that precision."""
    parameters, buffers = (
        {name: value.to(old[name].dtype) for name, value in new.items()}
        for new, old in ((found.parameters, model.parameters), (found.buffers, model.buffers))
    )
    return Weights(parameters, buffers)
