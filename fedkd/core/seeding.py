"""Seeds derived from keys, such as (run, round, client): results do not depend on the order of execution."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


def derive_seed(*keys: int | str) -> int:
    """Derive a seed from a sequence of keys. Equal keys give the same seed on every machine.

    Args:
        keys: For example ``(run_seed, "client", round, client_id)``.

    Returns:
        An integer in ``[0, 2**63)``: the first 63 bits of the SHA-256 of the keys.
    """
    hashed = hashlib.sha256(repr(tuple(keys)).encode()).digest()
    return int.from_bytes(hashed[:8], "big") >> 1


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()  # it opens the driver's library each time, as long as a small client trains


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed Python, numpy and torch from ``keys`` inside the block, and restore their states afterwards.

    Args:
        keys: See `derive_seed`.
    """
    with states_kept():
        seed_all(derive_seed(*keys))
        yield


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch, on every device, by the last 32 bits of ``seed``."""
    seed %= 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if _has_gpu():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def states_kept() -> Iterator[None]:
    """Restore the states of Python's, numpy's and torch's random numbers after the block."""
    # Lightning's isolate_rng and seed_everything do the same, and write a stack trace for a CUDA that is not there.
    on_gpu = _has_gpu()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if on_gpu else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(gpu_states)
