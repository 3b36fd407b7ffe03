"""What to keep: the rules for a row alone (rules, personal, references, own) and among rows (among), their order
(selection), and what a selection says of itself (report)."""

from nemo_sdg.quality.own import Context, Drop, Keep, Rule
from nemo_sdg.quality.selection import Selector, decide

__all__ = ["Context", "Drop", "Keep", "Rule", "Selector", "decide"]
