"""The two-layer CNN of FedAvg.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", 2017, arXiv 1602.05629, section 3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import check_range
from fedkd.students.layers import NORMS, Normalize, check_norm, make_norm
from fedkd.students.registry import students


@students.register("cnn")
class CNN(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, each with 2x2 max-pooling, then 512 hidden units.

    With 28x28 gray images and 10 classes it has the paper's 1,663,370 parameters.

    Args:
        num_classes: K, the number of classes.
        in_channels: C, the channels of an image.
        image_size: H in pixels, at least 4, and W unless ``image_width`` is given. The first fully connected layer
            depends on them.
        norm: ``"none"``, as in the paper, or ``"batch"`` or ``"group"`` after each convolution.
        image_width: W in pixels, of oblong images.

    Raises:
        FedKDError: If ``norm`` is unknown or the image is too small.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        norm: str = "none",
        image_width: int | None = None,
    ) -> None:
        super().__init__()
        check_norm(norm, ("none", *NORMS))
        width = image_size if image_width is None else image_width
        check_range("image_size", image_size, low=4, whole=True)
        check_range("image_width", width, low=4, whole=True)
        bare = norm == "none"
        self.normalize = Normalize()
        self.conv1 = nn.Conv2d(in_channels, 32, kernel_size=5, padding=2, bias=bare)
        self.norm1 = nn.Identity() if bare else make_norm(norm, 32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2, bias=bare)
        self.norm2 = nn.Identity() if bare else make_norm(norm, 64)
        self.hidden = nn.Linear(64 * (image_size // 4) * (width // 4), 512)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        x = self.normalize(images)
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)  # (B, C, H, W) -> (B, 32, H/2, W/2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)  # -> (B, 64, H/4, W/4)
        x = F.relu(self.hidden(x.flatten(1)))  # -> (B, 512)
        return self.head(x)  # -> (B, K)
