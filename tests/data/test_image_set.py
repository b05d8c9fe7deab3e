"""Image sets whose channels or attributes differ."""

from __future__ import annotations

import torch

from fedkd.data.images.image_set import ImageSet, with_same_channels


def test_attributes_stay_where_channels_are_made_the_same():
    gray = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), {"site": ["x", "y"]})
    colored = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    colored[:, 0] = 9
    train, test = with_same_channels(gray, ImageSet(colored, torch.tensor([0, 1]), ("a", "b")))
    assert train.image_shape == test.image_shape == (3, 8, 8)
    assert list(train.attributes["site"]) == ["x", "y"]
