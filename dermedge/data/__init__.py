"""Data sets: one table, its taxonomy, its splits, its importers and its checks."""

from dermedge.data.check import CheckReport, Finding, check
from dermedge.data.generate import generate
from dermedge.data.importing.add import AddReport, SetInfo, add, sets
from dermedge.data.layouts import CONTAINS, LAYOUTS, Join, Layout, Part
from dermedge.data.skin import skin_tones
from dermedge.data.split import SplitReport, assign_splits, split, with_split
from dermedge.data.table import COLUMNS, SPLITS, Table, digests, groups, read_table, table_digest
from dermedge.data.taxonomy import TAXONOMY, Diagnosis, lineage, project, resolve

__all__ = [
    "COLUMNS",
    "CONTAINS",
    "LAYOUTS",
    "SPLITS",
    "TAXONOMY",
    "AddReport",
    "CheckReport",
    "Diagnosis",
    "Finding",
    "Join",
    "Layout",
    "Part",
    "SetInfo",
    "SplitReport",
    "Table",
    "add",
    "assign_splits",
    "check",
    "digests",
    "generate",
    "groups",
    "lineage",
    "project",
    "read_table",
    "resolve",
    "sets",
    "skin_tones",
    "split",
    "table_digest",
    "with_split",
]
