"""What a run has done, told from its folder alone, in the terminal and as one HTML page.

result     what the folder says: rows and reasons per stage, evaluations, losses, places
measures   the evaluations as rows of a table, with intervals
times      seconds, tokens and rates, from the events
rows       the rows of a round as numbers, and the texts of a few of them
whatif     these numbers, small enough for a page, for another selection in the browser
examples   best, median and worst rows, and what revision changed
plots      histograms and curves as SVG text
page       all of it as one file; page.css, selection.js and whatif.js are its parts
terminal   the tables of `nemo-sdg report`
"""

from nemo_sdg.evaluation.report.measures import Measure, measures
from nemo_sdg.evaluation.report.result import Result, StageRows, places, read, reasons, stage_folders
from nemo_sdg.evaluation.report.terminal import show

__all__ = ["Measure", "Result", "StageRows", "measures", "places", "read", "reasons", "show", "stage_folders"]
