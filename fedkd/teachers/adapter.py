"""Low-rank adapters in a model, through the peft library: Hu et al. 2021, "LoRA" (arXiv 2106.09685)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError, check_range
from fedkd.core.seeding import seeded
from fedkd.core.tensors import Tensors


@dataclass(frozen=True)
class LoRA:
    """The settings of the adaptation of a backbone.

    Args:
        rank: r; >= 1.
        alpha: The update is B A times alpha / r; > 0.
        rounds: Rounds of averaging; >= 1. Every client with images takes part in each round.
        local_epochs: Passes of a client over its images in a round; >= 1.
        lr: The learning rate of each client's Adam; > 0.
        batch_size: Images in a step; >= 1.
        layers: "all-linear", or suffixes of the names of layers to adapt, such as ["q_proj", "v_proj"]. These layers
            may also be convolutions.
        seed: Determines A and the order of images.
    """

    rank: int = 8
    alpha: float = 16.0
    rounds: int = 5
    local_epochs: int = 1
    lr: float = 1e-3
    batch_size: int = 32
    layers: Literal["all-linear"] | list[str] = "all-linear"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "rounds", "local_epochs", "batch_size"):
            check_range(name, getattr(self, name), low=1, whole=True)
        for name in ("alpha", "lr"):
            check_range(name, getattr(self, name), low=0, low_open=True)


class Adapter:
    """A model with peft's adapters A and B. Only B is trained.

    Args:
        peft_model: The model from peft.
    """

    def __init__(self, peft_model: Any) -> None:
        self.peft_model = peft_model
        self.learned = {name: p for name, p in peft_model.named_parameters() if "lora_B" in name}
        for name, parameter in peft_model.named_parameters():
            parameter.requires_grad_(name in self.learned)

    def state(self) -> Tensors:
        """Copy the trained adapter to the CPU."""
        return {name: p.detach().cpu().float().clone() for name, p in self.learned.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the adapter's state."""
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(state[name])

    def merged(self) -> Any:
        """Add B A to the weights and return the plain model."""
        return self.peft_model.merge_and_unload().requires_grad_(False).eval()


def inject(model: Any, lora: LoRA) -> Adapter:
    """Add adapters to a model: A is drawn from the seed, and B is 0.

    Raises:
        FedKDError: If the model does not have the layers of ``lora.layers``.
    """
    peft = import_peft()
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.layers)
    try:
        with seeded(lora.seed, "lora"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses names that transformers has changed
            return Adapter(peft.get_peft_model(model, config).eval())
    except ValueError as error:
        known = adaptable(model)
        raise FedKDError(
            f"LoRA cannot adapt {type(model).__name__} at layers {lora.layers!r}: "
            + (f"choose among {', '.join(known)}." if known else "it has no linear or convolutional layer.")
        ) from error


def adaptable(model: nn.Module) -> list[str]:
    """Return the last parts of the names of a model's linear and convolutional layers, most frequent first."""
    kinds = (nn.Linear, nn.Conv2d)
    ends = Counter(name.split(".")[-1] for name, layer in model.named_modules() if isinstance(layer, kinds))
    return [name for name, _ in ends.most_common()]


def import_peft() -> Any:
    """Return the peft library. If it is missing, raise an error with the command that installs it."""
    try:
        import peft
    except ImportError:
        raise MissingResourceError("LoRA needs the package peft: pip install 'fedkd[lora]'.") from None
    return peft
