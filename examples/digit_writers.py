"""Write a small data set with natural clients: digits as PNG files by thirteen writers, and a CSV that lists them.

    python examples/digit_writers.py            # data/digit_writers: 1,363 images of 24x24 and labels.csv
    fedkd fit --config examples/digit_writers.yaml

The digits are those that come with fedkd (UCI, CC BY 4.0). Thirteen people wrote them, but the data set does not say
who wrote which. So the writers here are invented: each has a slant, a pen, a paper and a size of digits of its own,
writes some digits more often than others, and more or fewer images than others. Images that the teacher `digits-tiny`
was trained on are left out.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedkd.data import Digits, FederatedDataModule, ImageSet

WRITERS = 13
SIDE = 24  # pixels


@dataclass(frozen=True)
class Hand:
    """What makes a writer's images look alike."""

    slant: float  # in radians
    size: float  # of the digit; 1 is the image's
    pen: float  # exponent of the brightness: below 1 a thick stroke, above 1 a thin one
    paper: int  # brightness of the background

    def write(self, digit: np.ndarray) -> Image.Image:
        """Return a digit, uint8 (8, 8), as this writer would write it."""
        large = Image.fromarray(digit).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        shear, middle = math.tan(self.slant), (SIDE - 1) / 2
        a, b = 1 / self.size, shear / self.size  # from a pixel of the result to one of the original
        shift = (middle - a * middle - b * middle, middle - a * middle)
        turned = large.transform(
            large.size, Image.Transform.AFFINE, (a, b, shift[0], 0.0, a, shift[1]), Image.Resampling.BILINEAR
        )
        ink = (np.asarray(turned) / 255) ** self.pen
        return Image.fromarray(np.rint(self.paper + (255 - self.paper) * ink).astype(np.uint8))


def hands(rng: np.random.Generator) -> list[Hand]:
    """Draw the writers."""
    return [
        Hand(
            slant=math.radians(rng.uniform(-25, 25)),
            size=rng.uniform(0.75, 1.1),
            pen=math.exp(rng.uniform(-0.7, 0.7)),
            paper=int(rng.integers(0, 70)),
        )
        for _ in range(WRITERS)
    ]


def writers_of(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw who writes each image, (N,): writers differ in how much they write, and in which digits."""
    share = rng.lognormal(0, 0.6, (WRITERS, 1)) * rng.dirichlet(np.full(10, 0.5), WRITERS)  # (writers, digits)
    share /= share.sum(axis=0)
    return np.array([rng.choice(WRITERS, p=share[:, label]) for label in labels])


def main() -> None:
    """Write the images and the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data/digit_writers"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)

    digits = FederatedDataModule(Digits(), public_fraction=0.3)  # digits-tiny was trained on the public split
    digits.setup()
    unseen: dict[str, ImageSet] = {
        "train": digits.train.subset(np.sort(np.concatenate(digits.shards))),
        "test": digits.test,
    }
    styles = hands(rng)
    rows = []
    for split, data in unseen.items():
        labels = data.targets.numpy()
        # every writer writes every digit in the test set: it measures the student on all hands and all digits alike
        writers = writers_of(labels, rng) if split == "train" else rng.integers(0, WRITERS, len(labels))
        for i, (writer, label) in enumerate(zip(writers, labels, strict=True)):
            path = Path(f"writer{writer:02d}", f"{split}{i:04d}.png")
            (arguments.out / path).parent.mkdir(parents=True, exist_ok=True)
            styles[writer].write(data.images[i, 0].numpy()).save(arguments.out / path)
            rows.append((path.as_posix(), int(label), f"writer{writer:02d}", split))
    with (arguments.out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "writer", "split"), *rows])
    print(f"{arguments.out / 'labels.csv'}: {len(rows):,} images by {WRITERS} writers")


if __name__ == "__main__":
    main()
