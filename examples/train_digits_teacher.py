"""Train the quickstart's teacher: a small HuggingFace ResNet that ships with fedkd as ``digits-tiny``.

    python examples/train_digits_teacher.py

It is trained only on the public split of Digits: on no image of any client, and on none of the test set. It is saved as
an ordinary checkpoint folder (config, weights, image processor), which loads through the same code as one from the hub.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedkd.teachers
from fedkd.core.seeding import seeded
from fedkd.data import Digits, FederatedDataModule
from fedkd.teachers import prepare_teacher
from fedkd.teachers.huggingface.preprocess import Preprocess

FOLDER = Path(fedkd.teachers.__file__).parent / "checkpoints" / "digits"

MODEL_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
---
# digits-tiny

A ResNet of {parameters:,} parameters (`ResNetModel`, weights in float16) for scikit-learn's handwritten digits. It is
the teacher of fedkd's quickstart: small enough to ship inside the package, and loaded like any checkpoint from the hub.

- **Trained on** the {images} images of the public split of `FederatedDataModule(Digits(), public_fraction={fraction})`,
  with their labels; shifted, turned and scaled at random. No image of a client and none of the test set was used.
- **Made by** `python examples/train_digits_teacher.py --seed {seed} --epochs {epochs}`, in {seconds:.0f} s on one
  CPU thread.
- **Accuracy** on the {tests} test images, of a ridge head fitted on the clients' images: {accuracy:.2%}.
- **Data**: test set of the UCI ML hand-written digits, as in `sklearn.datasets.load_digits` (CC BY 4.0).
"""


def augment(images: Tensor) -> Tensor:
    """Shift, rotate and scale each image independently: (B, C, H, W) -> the same shape."""
    n = len(images)
    angle = (torch.rand(n) * 2 - 1) * math.radians(15)
    scale = 1 + (torch.rand(n, 2) * 2 - 1) * 0.15
    shift = (torch.rand(n, 2) * 2 - 1) * 0.25  # up to one of the digit's eight pixels
    rotation = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1).view(n, 2, 2)
    theta = torch.cat([rotation * scale[:, None], shift[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(images: Tensor, targets: Tensor, num_classes: int, epochs: int, batch_size: int = 32) -> nn.Module:
    """Train a backbone with a linear classifier on top, and return the backbone.

    Args:
        images: Preprocessed, (N, 3, 32, 32).
        targets: (N,) labels.
        num_classes: K.
        epochs: Passes over the images.
        batch_size: Images per step.
    """
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic")
    backbone = ResNetModel(config)
    classifier = nn.Linear(config.hidden_sizes[-1], num_classes)
    parameters = [*backbone.parameters(), *classifier.parameters()]
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    backbone.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            features = backbone(augment(images[batch])).pooler_output.flatten(1)
            loss = F.cross_entropy(classifier(features), targets[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return backbone.eval()


def main() -> None:
    """Train the teacher, save it, and measure the saved checkpoint."""
    from transformers import ViTImageProcessor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums are then computed in the same order on every machine

    data = FederatedDataModule(Digits(), public_fraction=0.3)
    data.setup()
    public = data.train.subset(data.public_indices)
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, resample=3, image_mean=[0.3] * 3, image_std=[0.4] * 3
    )

    start = time.monotonic()
    with seeded(arguments.seed, "digits teacher"):
        pixels = Preprocess.from_processor(processor)(public.images.float() / 255)
        backbone = train(pixels, public.targets, public.num_classes, arguments.epochs)
    seconds = time.monotonic() - start

    backbone.half().save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    (arguments.output / "model.safetensors").chmod(0o644)  # it is written readable for its owner only
    teacher = fedkd.teachers.create(str(arguments.output))
    outputs = prepare_teacher(teacher, data, progress=False)
    card = MODEL_CARD.format(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        images=len(public),
        fraction=data.public_fraction,
        seed=arguments.seed,
        epochs=arguments.epochs,
        seconds=seconds,
        tests=len(data.test),
        accuracy=outputs.accuracy,
    )
    (arguments.output / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
