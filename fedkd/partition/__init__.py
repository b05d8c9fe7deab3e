"""Partition a data set over clients: one file per partitioner, and a report of the result. Needs only numpy."""

from fedkd.partition.by_attribute import ByAttribute
from fedkd.partition.class_and_quantity import ClassAndQuantity
from fedkd.partition.class_specific import ClassSpecific
from fedkd.partition.dirichlet import Dirichlet
from fedkd.partition.given import Given
from fedkd.partition.iid import IID
from fedkd.partition.partitioner import Partitioner
from fedkd.partition.quantity_skew import QuantitySkew
from fedkd.partition.report.report import PartitionReport
from fedkd.partition.shards import Shards

__all__ = [
    "IID",
    "ByAttribute",
    "ClassAndQuantity",
    "ClassSpecific",
    "Dirichlet",
    "Given",
    "PartitionReport",
    "Partitioner",
    "QuantitySkew",
    "Shards",
]
