"""`Classifier`: the half of a LightningModule that validates, tests and predicts with a student."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from fedkd.core.metrics import accuracies


class Classifier(LightningModule):
    """Measures a student: accuracy, balanced accuracy and accuracy per class, by counting.

    Attributes:
        student: Images (B, C, H, W) in [0, 1] to logits (B, K); None until it is built.
        classes: Names of the K classes.
        confusion: Counts of (target, prediction).
    """

    student: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = ()
        self.confusion: MulticlassConfusionMatrix | None = None

    def count_classes(self, num_classes: int) -> None:
        """Make room to count predictions of K classes."""
        self.confusion = MulticlassConfusionMatrix(num_classes=num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to the student's logits (B, K)."""
        assert self.student is not None
        return self.student(images)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of an earlier pass."""
        assert self.confusion is not None
        self.confusion.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count predictions by class and log the cross-entropy."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, balanced accuracy and accuracy per class."""
        self._log_accuracies("val")

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`."""
        self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_accuracies("test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities (B, K)."""
        return self(batch[0]).float().softmax(dim=-1)

    def _evaluation_step(self, batch: Any, stage: str) -> None:
        images, targets = batch[:2]
        logits = self(images).float()
        assert self.confusion is not None
        self.confusion.update(logits, targets)
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, targets), batch_size=len(targets))

    def _log_accuracies(self, stage: str) -> None:
        assert self.confusion is not None
        metrics = accuracies(self.confusion.compute(), self.classes)
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})
