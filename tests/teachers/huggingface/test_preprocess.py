"""Preprocessing on tensors gives what the checkpoint's own image processor gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.core.errors import FedKDError
from fedkd.teachers.huggingface.patches import naflex_inputs
from fedkd.teachers.huggingface.preprocess import Preprocess, levels_apart, load_preprocess


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
    apart = (ours - expected).abs() / preprocess.scale  # in units of the image, in which one gray level is 1 / 255
    assert apart.max() <= 2.5 / 255  # processors round to whole gray levels after each pass
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


def test_gray_images_are_repeated_into_three_channels() -> None:
    gray = torch.rand(2, 1, 8, 8)
    preprocess = Preprocess.from_processor(processors()["siglip"])
    assert torch.equal(preprocess(gray), preprocess(gray.repeat(1, 3, 1, 1)))


def test_normalizes_by_hand() -> None:
    # SigLIP's mean and deviation are 0.5: black, gray and white become -1, 0 and 1.
    preprocess = Preprocess.from_processor(processors()["siglip"])
    levels = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    torch.testing.assert_close(preprocess(levels).mean((1, 2, 3)), torch.tensor([-1.0, 0.0, 1.0]))


def naflex(side: int) -> Any:
    from transformers import Siglip2ImageProcessor

    return Siglip2ImageProcessor(patch_size=16, max_num_patches=side)


@pytest.mark.parametrize("size", [(32, 32), (427, 640), (28, 28), (500, 20), (96, 64)])
def test_any_aspect_ratio_is_cut_into_patches_as_siglip2s_processor_does(
    size: tuple[int, int], photo: np.ndarray
) -> None:
    pixels = np.resize(photo, (*size, 3))
    expected = naflex(64)(Image.fromarray(pixels), return_tensors="pt")
    preprocess = Preprocess.from_processor(naflex(64))
    ours = preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    inputs = naflex_inputs(ours, 16)

    assert inputs["spatial_shapes"].tolist() == expected["spatial_shapes"].tolist()
    count = int(expected["pixel_attention_mask"].sum())
    assert inputs["pixel_attention_mask"].tolist() == [[1] * count]
    apart = (inputs["pixel_values"] - expected["pixel_values"][:, :count]).abs() / 2  # -1..1: in units of the image
    assert apart.max() <= 2.5 / 255
    assert apart.mean() <= 0.5 / 255


def test_image_size_of_a_model_of_patches_by_hand() -> None:
    preprocess = Preprocess.from_processor(naflex(256), image_size=70)  # 4 x 4 patches of 16 pixels
    assert preprocess(torch.rand(1, 3, 32, 32)).shape == (1, 3, 64, 64)
    assert preprocess(torch.rand(1, 3, 32, 64)).shape == (1, 3, 48, 80)  # 3 x 5 patches; next would be 3 x 6
    with pytest.raises(FedKDError, match="image_size must be >= 16, got 15"):
        Preprocess.from_processor(naflex(256), image_size=15)


@dataclass
class WithProcessor:
    """As a checkpoint, of which only the processor counts."""

    processor: object
    name: str = "one"

    def load(self, auto_class):
        return self.processor


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MobileViTImageProcessor", {}),
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": {"height": 50, "width": 50}}),
        ("MobileViTImageProcessor", {"do_center_crop": False}),
        ("LevitImageProcessor", {}),
        ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.95}),
    ],
)
def test_what_no_setting_tells_is_followed_too(name, settings):
    import transformers

    processor = getattr(transformers, name)(**settings)
    preprocess = load_preprocess(WithProcessor(processor))
    assert preprocess.reverse_channels == name.startswith("MobileViT")  # blue, green, red
    assert levels_apart(processor, preprocess, 3) < 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [("PerceiverImageProcessor", {"crop_size": {"height": 80, "width": 90}}), ("PPLCNetImageProcessor", {})],
)
def test_a_processor_that_is_not_followed_is_refused_by_name(name, settings):
    import transformers

    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    processor = getattr(transformers, name)(**settings)
    with pytest.raises(FedKDError, match=rf"{name}\w* of 'one' prepares images .* \d+ of 256 grey levels apart"):
        load_preprocess(WithProcessor(processor))


@pytest.mark.parametrize(
    ("channels", "settings"),
    [(1, {}), (3, {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]})],
)
def test_a_processor_for_another_number_of_channels_is_one_line(channels, settings):
    from transformers import ViTImageProcessor

    message = rf"ViTImageProcessor\w* of 'one' does not take an image of {channels} channel\(s\), as its model .*json"
    with pytest.raises(FedKDError, match=message) as raised:
        load_preprocess(WithProcessor(ViTImageProcessor(**settings)), channels=channels)
    assert "\n" not in str(raised.value)


def test_a_processor_of_one_channel_prepares_gray_and_colored_images():
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.25], image_std=[0.5])
    preprocess = load_preprocess(WithProcessor(processor), channels=1)
    gray = torch.full((1, 1, 8, 8), 0.5)
    assert torch.allclose(preprocess(gray), torch.full((1, 1, 8, 8), 0.5))  # (0.5 - 0.25) / 0.5
    colored = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1).expand(1, 3, 8, 8)  # 0.5 in the mean
    assert torch.allclose(preprocess(colored), torch.full((1, 1, 8, 8), 0.5))
