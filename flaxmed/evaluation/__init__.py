"""Metrics, reports, comparisons and figures, from predictions alone; imports no jax."""

from flaxmed.evaluation.column import Column, Spread
from flaxmed.evaluation.comparison import Comparison, compare
from flaxmed.evaluation.curves import RocCurve
from flaxmed.evaluation.estimates import Metric
from flaxmed.evaluation.figures import comparison_figures, report_figures
from flaxmed.evaluation.metrics import METRICS, score
from flaxmed.evaluation.report import Report, evaluate
from flaxmed.evaluation.runs import (
    compare_runs,
    evaluate_run,
    save_comparison,
    write_comparison,
)
from flaxmed.evaluation.worst import worst_images

__all__ = [
    "METRICS",
    "Column",
    "Comparison",
    "Metric",
    "Report",
    "RocCurve",
    "Spread",
    "compare",
    "compare_runs",
    "comparison_figures",
    "evaluate",
    "evaluate_run",
    "report_figures",
    "save_comparison",
    "score",
    "worst_images",
    "write_comparison",
]
