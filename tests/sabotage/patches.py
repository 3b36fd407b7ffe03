"""One small patch for each promise of the project, and the test that must turn red when the promise is broken.

`run.py` puts each into a copy of the tree. A line that a patch changes may have moved on; `test_patches.py` says so in the
normal tests. Write a patch for a promise that you add, and choose a test that takes seconds.
"""

from __future__ import annotations

from sabotage import from_outside, in_models, in_rows, on_disk
from sabotage.patch import Patch

PATCHES: list[Patch] = [*on_disk.PATCHES, *in_rows.PATCHES, *in_models.PATCHES, *from_outside.PATCHES]
