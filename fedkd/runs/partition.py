"""What a run writes down of its partition."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedkd.data import FederatedDataModule


def partition_record(datamodule: FederatedDataModule) -> dict[str, Any]:
    """Return what ``partition.json`` holds: the report, and where they are known every client's image indices."""
    indices = {"indices": datamodule.shards, "val_indices": datamodule.val_shards} if datamodule.has_rows else {}
    lists = {name: [np.asarray(shard).tolist() for shard in shards] for name, shards in indices.items()}
    shared = {"shared_images": 0 if datamodule.shared_images is None else len(datamodule.shared_images)}
    return {**datamodule.partition_report().to_dict(), **shared, **lists}
