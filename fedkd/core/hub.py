"""Find and load HuggingFace checkpoints, in a folder, in the local cache, or on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedkd.core.errors import FedKDError, MissingResourceError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that exists.

    Args:
        name: The name that the user gave.
        path: The folder or hub id.
        config: The transformers configuration.
        options: Keyword arguments for each ``from_pretrained``.
    """

    name: str
    path: str
    config: Any
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, auto_class: Any, **options: Any) -> Any:
        """Load one part of the checkpoint with ``auto_class.from_pretrained``.

        Raises:
            MissingResourceError: If a file or a package is missing.
            FedKDError: If the checkpoint cannot be read.
        """
        with _quiet():
            try:
                # else transformers asks on the terminal whether to run a checkpoint's own Python
                return auto_class.from_pretrained(self.path, trust_remote_code=False, **self.options, **options)
            except ImportError as error:
                raise MissingResourceError(
                    f"Checkpoint {self.name!r} needs a package that is not installed: {_first_line(error)}"
                ) from error
            except Exception as error:
                missing = isinstance(error, OSError) and not isinstance(error, PermissionError)
                kind = MissingResourceError if missing else FedKDError
                raise kind(f"Cannot load {auto_class.__name__} of {self.path!r}: {_first_line(error)}") from error

    def load_model(self, auto_class: Any, may_lack: str = "") -> Any:
        """Load the model in float32, and check that the checkpoint contains its weights.

        Args:
            auto_class: ``AutoModel`` or a similar class.
            may_lack: Weights with this text in their name may be missing. They are set to zero: transformers would
                initialize them at random, differently in each process.

        Raises:
            FedKDError: If other weights are missing, since they would be random.
        """
        import torch

        model, info = self.load(auto_class, dtype=torch.float32, output_loading_info=True)
        lacking = sorted(str(name) for name in info["missing_keys"])
        for name in lacking:
            if not may_lack or may_lack not in name:
                raise FedKDError(
                    f"Checkpoint {self.path!r} lacks {len(lacking)} weights of its model, such as {name!r}."
                )
            with torch.no_grad():
                model.get_parameter(name).zero_()
        return model


def open_checkpoint(
    path: str, revision: str | None = None, name: str | None = None, kind: str = "checkpoint", hint: str = ""
) -> Checkpoint:
    """Find a checkpoint in a folder or on the hub, and read its configuration.

    If the hub cannot be reached, only files from earlier downloads are used. A missing file then fails immediately;
    transformers would retry for 23 seconds.

    Args:
        path: A folder or a hub id.
        revision: Branch, tag or commit on the hub.
        name: What errors of the checkpoint call it; None is the path.
        kind: What it is a checkpoint of, such as ``"teacher checkpoint"``.
        hint: The end of the message where it is not found, such as the nearest name.

    Raises:
        MissingResourceError: If the checkpoint is not found. The error names the searched places and what to do.
    """
    from transformers import AutoConfig

    name = path if name is None else name
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingResourceError(
                f"No {kind} in folder {str(folder)!r}: it has no config.json. Give a folder with "
                "config.json and model.safetensors, as save_pretrained writes it."
            )
        if revision is not None:
            raise FedKDError(f"revision {revision!r} is for a hub id, and {str(folder)!r} is a folder: leave it out.")
        return _open(AutoConfig, name, str(folder), {})
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path:
        raise MissingResourceError(
            f"No {kind} {path!r}: the folder does not exist. Give a folder with config.json and "
            f"model.safetensors, or a HuggingFace hub id.{hint}"
        )
    from huggingface_hub import constants

    reachable = hub_is_reachable()
    try:
        return _open(AutoConfig, name, path, {"revision": revision or "main", "local_files_only": not reachable})
    except FedKDError as error:
        hub = f"on {constants.ENDPOINT}" if reachable else f"in {constants.HF_HUB_CACHE}"
        reason = _first_line(error.__cause__ or error) if reachable else f"{constants.ENDPOINT} cannot be reached"
        raise MissingResourceError(
            f"No {kind} {path!r}: not a folder in {Path.cwd()}, and not found {hub} ({reason}). Give a "
            f"folder with config.json and model.safetensors, or run `hf download {path}` while online.{hint}"
        ) from error


def middle_pixel(processor: Any, value: int, channels: int) -> Tensor:
    """Return what an image processor makes of a pixel in the middle of an image of one color: (channels,) float64.

    A processor changes pixel values by an affine map (rescaling, mean, standard deviation, offsets, for some twice). So
    its output for black is the shift, and white minus black is the scale.

    Args:
        processor: Of transformers.
        value: Of all pixels and channels, 0 to 255.
        channels: Of the model.
    """
    from PIL import Image

    pixels = np.full((64, 64, 3) if channels == 3 else (64, 64), value, np.uint8)
    out = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].double()
    # (channels, H, W), or patches (N, P * P * channels)
    return out[:, out.shape[1] // 2, out.shape[2] // 2] if out.ndim == 3 else out[0, :channels]


def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the HuggingFace hub responds to one request, without retries. Configured proxies are used."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception:
        return False
    return True


def _open(auto_config: Any, name: str, path: str, options: dict[str, Any]) -> Checkpoint:
    return Checkpoint(name, path, Checkpoint(name, path, None, options).load(auto_config), options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' progress bars and loading reports. Problems are raised as errors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message: those of the hub go on for several."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
