"""The only writer of rows: atomic files and folders (files), files that are written row by row (rows), row groups of a
stage (stage), a run's folder (run)."""

from nemo_sdg.store.files import commit_file, commit_folder, commit_rows, digest
from nemo_sdg.store.rows import RowFile
from nemo_sdg.store.run import Run
from nemo_sdg.store.stage import Group, StageStore, conserved

__all__ = ["Group", "RowFile", "Run", "StageStore"]
__all__ += ["commit_file", "commit_folder", "commit_rows", "conserved", "digest"]
