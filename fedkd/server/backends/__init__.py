"""Where clients run: in this process, for now."""

from fedkd.server.backends.base import Backend
from fedkd.server.backends.in_process import InProcess

__all__ = ["Backend", "InProcess"]
