"""Metrics, reports, comparisons and figures, from predictions alone; imports no jax."""

from flaxmed.evaluation.comparison import Column, Comparison, Spread, compare
from flaxmed.evaluation.curves import RocCurve
from flaxmed.evaluation.figures import comparison_figures, report_figures
from flaxmed.evaluation.metrics import METRICS, score
from flaxmed.evaluation.report import Metric, Report, evaluate
from flaxmed.evaluation.runs import compare_runs, evaluate_run, write_comparison

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
    "score",
    "write_comparison",
]
