"""Preprocessing on tensors gives what the checkpoint's own image processor gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.errors import FedKDError
from fedkd.teachers.preprocess import Preprocess


def processors() -> dict[str, Any]:
    import transformers as t

    timm = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", "input_size": (3, 56, 56)}
    return {
        "bit": t.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
        "clip": t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        "siglip": t.SiglipImageProcessor(size={"height": 64, "width": 64}),
        "vit": t.ViTImageProcessor(size={"height": 64, "width": 48}),
        "convnext": t.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875),
        "convnext-384": t.ConvNextImageProcessor(size={"shortest_edge": 384}),
        "dinov3": t.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}),
        "efficientnet": t.EfficientNetImageProcessor(size={"height": 64, "width": 64}, rescale_offset=True),
        "crop-larger-than-image": t.BitImageProcessor(
            size={"shortest_edge": 40}, crop_size={"height": 64, "width": 64}
        ),
        "timm-center": t.TimmWrapperImageProcessor({**timm, "crop_pct": 0.875, "crop_mode": "center"}),
        "timm-squash": t.TimmWrapperImageProcessor({**timm, "crop_pct": 0.875, "crop_mode": "squash"}),
    }


@pytest.mark.parametrize("name", list(processors()))
@pytest.mark.parametrize("side", ["large", "small"])
def test_equals_the_checkpoints_own_processor(name: str, side: str, photo: np.ndarray) -> None:
    processor = processors()[name]
    pixels = photo.copy() if side == "large" else photo[100:132, 200:240].copy()  # (32, 40, 3)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]

    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    preprocess = Preprocess.from_processor(processor)
    ours = preprocess(torch.cat([batch, 1 - batch]))[:1]

    assert ours.shape == expected.shape
    apart = (ours - expected).abs() / preprocess.scale  # in units of the image, in which one grey level is 1 / 255
    assert apart.max() <= 2.5 / 255  # processors round to whole grey levels after each pass
    assert apart.mean() <= 0.5 / 255


def test_image_size_replaces_the_processors_own(photo: np.ndarray) -> None:
    processor = processors()["bit"]
    square = torch.from_numpy(photo[:420, :420].copy()).permute(2, 0, 1)[None] / 255
    ours = Preprocess.from_processor(processor, image_size=56)(square)
    # The whole image, not the middle: an image whose margin differs differs.
    framed = square.clone()
    framed[..., :10] = 0
    assert ours.shape == (1, 3, 56, 56)
    assert not torch.equal(Preprocess.from_processor(processor, image_size=56)(framed), ours)
    oblong = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    assert Preprocess.from_processor(processor, image_size=98)(oblong).shape == (1, 3, 98, 98)
    assert Preprocess.from_processor(processors()["vit"], image_size=30)(oblong).shape == (1, 3, 30, 30)


def test_grey_images_are_repeated_into_three_channels() -> None:
    grey = torch.rand(2, 1, 8, 8)
    preprocess = Preprocess.from_processor(processors()["siglip"])
    assert torch.equal(preprocess(grey), preprocess(grey.repeat(1, 3, 1, 1)))


def test_normalises_by_hand() -> None:
    # SigLIP's mean and deviation are 0.5: black, grey and white become -1, 0 and 1.
    preprocess = Preprocess.from_processor(processors()["siglip"])
    levels = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    torch.testing.assert_close(preprocess(levels).mean((1, 2, 3)), torch.tensor([-1.0, 0.0, 1.0]))


def test_a_processor_that_cuts_patches_is_refused() -> None:
    from transformers import Siglip2ImageProcessor

    with pytest.raises(FedKDError, match="NaFlex"):
        Preprocess.from_processor(Siglip2ImageProcessor())
