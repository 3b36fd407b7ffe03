"""The only writer of rows: atomic files and folders (files), how they prove themselves (seals), row groups of a stage
(stage), a run's folder (run), and whether all of it is as it was written (verifying)."""

from nemo_sdg.store.files import commit_file, commit_folder, commit_rows, digest
from nemo_sdg.store.run import Run
from nemo_sdg.store.seals import commit_json, commit_text, read_json, write_sums
from nemo_sdg.store.stage import Group, StageStore, conserved

__all__ = [
    "Group",
    "Run",
    "StageStore",
    "commit_file",
    "commit_folder",
    "commit_json",
    "commit_rows",
    "commit_text",
    "conserved",
    "digest",
    "read_json",
    "write_sums",
]
