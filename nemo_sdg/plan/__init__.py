"""What a run would take, before it starts and from metadata alone: ranks, rows, tokens, bytes, memory, disk and time. No
torch, about a second.

Counts are upper bounds that follow from the settings; memory is that of a rank at its fullest moment (memory, activations,
buffers), the disk is what is written (disk), and time comes from a stated model of the machine (machine, timing, course).
"""

from nemo_sdg.plan.making import Plan, fitted, make

__all__ = ["Plan", "fitted", "make"]
