"""How a dataset is dealt out to clients: one file a partitioner, plus the report of the result. numpy only."""

from fedkd.partition.base import Partitioner
from fedkd.partition.class_specific import ClassSpecific
from fedkd.partition.dirichlet import Dirichlet
from fedkd.partition.iid import IID
from fedkd.partition.report import PartitionReport

__all__ = ["IID", "ClassSpecific", "Dirichlet", "PartitionReport", "Partitioner"]
