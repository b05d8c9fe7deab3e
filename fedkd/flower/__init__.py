"""The same run on real machines: Flower's SuperLink and SuperNodes carry fedkd's messages.

``fedkd.flower.server_app`` and ``fedkd.flower.client_app`` are the components of a Flower app, such as
``examples/flower``. docs/flower.md says how to run one.
"""

from __future__ import annotations

from fedkd.core.lazy import lazy_names

_HOMES = {
    "fedkd.flower.apps": ("client_app", "server_app", "server_run"),
    "fedkd.flower.backend": ("Flower",),
    "fedkd.flower.local_grid": ("LocalGrid",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = ["Flower", "LocalGrid", "client_app", "server_app", "server_run"]
