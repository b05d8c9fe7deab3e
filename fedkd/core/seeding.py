"""Seeds derived from keys, such as (run, round, client): results do not depend on the order of execution."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def derive_seed(*keys: int | str) -> int:
    """Derive a seed from a sequence of keys. Equal keys give the same seed on every machine.

    Args:
        keys: For example ``(run_seed, "client", round, client_id)``.

    Returns:
        An integer in ``[0, 2**63)``: the first 63 bits of the SHA-256 of the keys.
    """
    hashed = hashlib.sha256(repr(tuple(keys)).encode()).digest()
    return int.from_bytes(hashed[:8], "big") >> 1


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed Python, numpy and torch from ``keys`` inside the block, and restore their states afterwards.

    Args:
        keys: See `derive_seed`.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.seed import isolate_rng

    with isolate_rng():
        seed_everything(derive_seed(*keys) % 2**32, verbose=False)
        yield
