"""The only writer of rows: atomic files and folders (files), how they prove themselves (seals), files that are written
row by row (rows) and where a verb puts them (results), row groups of a stage (stage), a run's folder (run), the files
that a round hands on (datasets), and whether all of it is as it was written (verifying)."""

from nemo_sdg.store.datasets import DatasetFolder
from nemo_sdg.store.files import commit_file, commit_folder, commit_rows, digest
from nemo_sdg.store.inputs import rows_digest
from nemo_sdg.store.results import beside, check_result
from nemo_sdg.store.rows import RowFile
from nemo_sdg.store.run import Run
from nemo_sdg.store.seals import commit_json, commit_text, read_json, write_sums
from nemo_sdg.store.stage import Group, StageStore, conserved

__all__ = [
    "DatasetFolder",
    "Group",
    "RowFile",
    "Run",
    "StageStore",
    "beside",
    "check_result",
    "commit_file",
    "commit_folder",
    "commit_json",
    "commit_rows",
    "commit_text",
    "conserved",
    "digest",
    "read_json",
    "rows_digest",
    "write_sums",
]
