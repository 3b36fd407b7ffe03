"""Imports NeMo's training API without its telemetry; import this before anything else of NeMo.

NeMo starts NVIDIA's OneLogger when it is imported on torchrun's rank 0. Only `llm.train` gives it its settings,
so it raises at the first save of any other fit, and it leaves log files in the working folder.
"""

from __future__ import annotations

import os

_rank = os.environ.pop("RANK", None)
try:
    from nemo.collections import llm
finally:
    if _rank is not None:
        os.environ["RANK"] = _rank

__all__ = ["llm"]
