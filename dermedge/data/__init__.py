"""Read, import, check, split and draw data sets.

A data set is one table with image paths. Its diagnoses are those of one taxonomy.
"""

from dermedge.data.check import CheckReport, check_data
from dermedge.data.draw import draw_data_set
from dermedge.data.findings import Finding
from dermedge.data.importing.add import AddReport, DataSetInfo, add_data, list_data_sets
from dermedge.data.layouts import CONTAINS, LAYOUTS, Join, Layout, Part
from dermedge.data.split import SplitReport, assign_splits, split_data, with_split
from dermedge.data.subgroups import skin_tones
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
    "DataSetInfo",
    "Diagnosis",
    "Finding",
    "Join",
    "Layout",
    "Part",
    "SplitReport",
    "Table",
    "add_data",
    "assign_splits",
    "check_data",
    "digests",
    "draw_data_set",
    "groups",
    "lineage",
    "list_data_sets",
    "project",
    "read_table",
    "resolve",
    "skin_tones",
    "split_data",
    "table_digest",
    "with_split",
]
