"""Several networks on the same images: a column each, and what the differences support."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation.bootstrap import DRAWS
from flaxmed.evaluation.column import Column, seed_means
from flaxmed.evaluation.comparison_tables import (
    csv_text,
    found_flags,
    main_table,
    reading_notes,
    side_tables,
    undefined_lines,
)
from flaxmed.evaluation.pairing import cost_parameters, cost_seconds, paired, same_groups
from flaxmed.evaluation.report import (
    IDEAL,
    NO_SOURCE,
    Report,
    Source,
    describe_images,
    evaluate,
)
from flaxmed.evaluation.tables import aligned, escape, fill, json_number, markdown
from flaxmed.evaluation.verdict import (
    Pair,
    Plan,
    Rank,
    compare_pairs,
    compare_with,
    rank,
    sentences,
)
from flaxmed.types import InputError, Predictions


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Mapping[str, Column]):
    """Several networks on the same images: a mapping from name to :class:`Column`.

    ``str`` is a table for the terminal; :meth:`to_markdown`, :meth:`to_csv` and :meth:`to_dict`
    say the same.

    Attributes:
        columns: the networks.
        plan: the primary metric, the difference that matters, the level.
        pairs: every two networks, tested on every metric; Holm's correction on the primary one.
        ranks: networks by the primary metric, best first, with those not told apart.
        verdict: what may be said and what may not, a sentence or two each.
        ideal: the ideal observer, on data whose generating model is known, else None.
        from_ideal: each network beside the ideal observer, a family of tests of its own.
        source: data set and split, as far as known.
        runs: by network the names of its runs, one per seed; empty where they are not known.

    Example:
        >>> import numpy as np
        >>> labels = np.arange(30) % 2
        >>> logits = np.random.default_rng(0).normal(size=(2, 30, 2)) + np.eye(2)[labels]
        >>> p, q = (Predictions(labels=labels, logits=one, task="binary") for one in logits)
        >>> comparison = compare({"resnet18": p, "xception": q})
        >>> print(comparison.verdict[0][:73])
        On these 30 test images no difference in AUC between resnet18 and xceptio
    """

    columns: tuple[Column, ...]
    plan: Plan
    pairs: tuple[Pair, ...]
    ranks: tuple[Rank, ...]
    verdict: tuple[str, ...]
    ideal: Column | None = None
    from_ideal: tuple[Pair, ...] = ()
    source: Source = NO_SOURCE
    runs: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{name!r}; compared are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (column.name for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def n(self) -> int:
        """Number of images."""
        return self.first.n

    def __str__(self) -> str:
        first = self.first
        lines = [
            self.source.title(),
            *describe_images(first.n, first.task, first.classes, first.counts),
            *(fill(f"! {flag}") for flag in self.flags()),
            "",
            *map(fill, self.verdict),
            "",
            *aligned(main_table(self, stacked=True)),
        ]
        for table in side_tables(self):
            lines += ["", *aligned(table)]
        return "\n".join([*lines, "", *(fill(note) for note in self.notes())])

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self)} on {self.n} images>"

    def to_markdown(self) -> str:
        """The comparison as GitHub Markdown."""
        first = self.first
        about = describe_images(first.n, first.task, first.classes, first.counts, width=0)
        lines = [f"## {escape(self.source.title())}", "", *map(escape, about), ""]
        lines += [f"**{escape(flag)}**\n" for flag in self.flags()]
        lines += [" ".join(map(escape, self.verdict)), "", *markdown(main_table(self))]
        for table in side_tables(self):
            lines += ["", *markdown(table)]
        return "\n".join([*lines, "", *(f"- {escape(note)}" for note in self.notes()), ""])

    def to_csv(self) -> str:
        """The comparison as CSV at full precision: a column per network, empty where undefined.

        The interval's ends follow each metric as rows of their own; with several seeds also the
        smallest and the largest, and the ends for new seeds.
        """
        return csv_text(self)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None; every metric of every seed."""
        first = self.first
        return {
            **{k: v for k, v in self.source.to_dict().items() if k != "model"},
            "n": first.n,
            "groups": first.groups,
            "task": str(first.task),
            "classes": [
                {"name": name, "images": count}
                for name, count in zip(first.classes, first.counts, strict=True)
            ],
            "positive": first.positive,
            "plan": dataclasses.asdict(self.plan),
            "verdict": list(self.verdict),
            "flags": self.flags(),
            "ranks": [{**dataclasses.asdict(r), "value": json_number(r.value)} for r in self.ranks],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "columns": [column.to_dict() for column in self.columns],
            "ideal_observer": None if self.ideal is None else self.ideal.to_dict(),
            "from_ideal": [pair.to_dict() for pair in self.from_ideal],
            "notes": self.notes(),
        }

    def flags(self) -> list[str]:
        """Signs of collapse and of images in two splits, by network or run where they differ."""
        return found_flags(self)

    def notes(self) -> list[str]:
        """How the numbers are to be read, a sentence or two each."""
        return reading_notes(self)

    @property
    def first(self) -> Report:
        """The first report: what all have in common, the images."""
        return self.columns[0].reports[0]

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """The networks' columns, and the ideal observer's where there is one."""
        return self.columns if self.ideal is None else (*self.columns, self.ideal)


def compare(
    predictions: Mapping[str, Predictions | Sequence[Predictions]],
    *,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    ideal: Predictions | None = None,
    dataset: Mapping[str, Any] | None = None,
    metric: str = "auc",
    difference: float = 0.02,
    power: float = 0.8,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Several networks on the same test images, paired on image ids, and tested.

    Args:
        predictions: by network; a list where a network was trained with several seeds.
        costs: by network, any of ``parameters`` (a whole number) and ``train_seconds`` (a number,
            or one per seed).
        ideal: the ideal observer's predictions, on data whose generating model is known.
        dataset: what a run recorded about the data, for the flags on identical images.
        metric: the primary metric, declared before looking: networks are ranked and told apart
            on it.
        difference: the smallest difference in it that would matter; how many test images would
            show it is said.
        power: the wanted probability of showing it.
        level: coverage of intervals; 1 - level is the error of the tests over all pairs.
        draws: bootstrap draws and permutations.
        seed: of everything that is drawn.

    Raises:
        InputError: nothing to compare; predictions of different images, labels, tasks, classes or
            groups (the message counts what differs); pixels that differ for some images and not
            for others; costs of a network that is not compared; a metric that does not belong to
            the task, or another number outside its range.

    Example:
        >>> scores = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]]
        >>> p = Predictions.from_probabilities(scores, labels=[0, 1, 0, 1], task="binary")
        >>> comparison = compare({"a": p, "b": [p, p]})
        >>> comparison["b"]["auc"].values, comparison.pairs[0].primary.p_value
        ((1.0, 1.0), 1.0)
    """
    plan = Plan(metric, difference, power, level, draws, seed)
    costs = costs or {}
    seeds = {
        name: (given,) if isinstance(given, Predictions) else tuple(given)
        for name, given in predictions.items()
    }
    if not seeds:
        raise InputError("nothing to compare: expected at least one network's predictions")
    for name, given in seeds.items():
        if not given:
            raise InputError(f"{name}: no predictions to compare")
    unknown = set(costs) - set(seeds)
    if unknown:
        raise InputError(
            f"costs of {min(unknown)!r}, which is not compared; expected {', '.join(seeds)}"
        )
    first_name, first = next((name, given[0]) for name, given in seeds.items())
    for name, given in seeds.items():
        many = len(given) > 1
        named = [
            (p, f"{name} ({i} of {len(given)})" if many else name) for i, p in enumerate(given, 1)
        ]
        seeds[name] = tuple(paired(p, title, first, first_name) for p, title in named)
    seeds = same_groups(seeds)
    columns = []
    for name, given in seeds.items():
        cost = costs.get(name, {})
        columns.append(
            _column(
                name,
                given,
                plan,
                dataset,
                parameters=cost_parameters(name, cost),
                train_seconds=cost_seconds(name, cost, len(given)),
            )
        )
    pairs = compare_pairs(seeds, plan)
    ranks = rank({column.name: column[metric].mean for column in columns}, pairs, plan)
    counts = {name: len(given) for name, given in seeds.items()}
    positive = columns[0].reports[0][metric].positive
    best: Column | None = None
    from_ideal: tuple[Pair, ...] = ()
    if ideal is not None:
        knowing: tuple[Predictions, ...] = (paired(ideal, IDEAL, first, first_name),)
        knowing = same_groups({first_name: seeds[first_name], IDEAL: knowing})[IDEAL]
        best = _column(IDEAL, knowing, plan, None)
        from_ideal = compare_with(seeds, IDEAL, knowing, plan)
    made = Comparison(
        columns=tuple(columns),
        plan=plan,
        pairs=pairs,
        ranks=ranks,
        verdict=sentences(ranks, pairs, counts, len(first), plan, positive),
        ideal=best,
        from_ideal=from_ideal,
    )
    for note in undefined_lines(made):
        warnings.warn(note, UndefinedMetricWarning, stacklevel=2)
    return made


def _column(
    name: str,
    seeds: tuple[Predictions, ...],
    plan: Plan,
    dataset: Mapping[str, Any] | None,
    **costs: Any,
) -> Column:
    options: dict[str, Any] = {"level": plan.level, "draws": plan.draws, "seed": plan.seed}
    with warnings.catch_warnings():  # the comparison says what is undefined
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        reports = tuple(evaluate(p, dataset=dataset, **options) for p in seeds)
    return Column(name, seeds, reports, seed_means(seeds, reports, plan.sampling), **costs)
