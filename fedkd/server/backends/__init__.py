"""Where clients run: in this process, or in a pool of processes."""

from fedkd.server.backends.base import Backend, ClientError, SiteFactory, Workers
from fedkd.server.backends.in_process import InProcess
from fedkd.server.backends.process_pool import ProcessPool

__all__ = ["Backend", "ClientError", "InProcess", "ProcessPool", "SiteFactory", "Workers"]
