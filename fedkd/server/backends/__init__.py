"""Where clients run: in this process, one after the other or several at once, or in a pool of processes."""

from fedkd.server.backends.base import Backend, ClientError, SiteFactory, Workers
from fedkd.server.backends.in_process import InProcess
from fedkd.server.backends.process_pool import ProcessPool
from fedkd.server.backends.stacked import Stacked

__all__ = ["Backend", "ClientError", "InProcess", "ProcessPool", "SiteFactory", "Stacked", "Workers"]
