"""What the reporting guidelines ask for, and where a model card answers it.

The topics are named in our own words; the guidelines' wording counts:

* CLAIM, 2024 update: A. S. Tejani et al., Radiology: Artificial Intelligence 6, e240300 (2024),
  https://doi.org/10.1148/ryai.240300
* TRIPOD+AI: G. S. Collins et al., BMJ 385, e078378 (2024),
  https://doi.org/10.1136/bmj-2023-078378
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a guideline.

    Attributes:
        number: its number there.
        topic: what it asks for.
        section: the chapter of the card that answers it; "" where only the author can.
        needs: what must be recorded for that, a name of the card's own list; "" for nothing.
        part: whether the chapter answers it in part only.
        people: whether it is about patients, care or readers, of which synthetic images have none.
    """

    number: str
    topic: str
    section: str = ""
    needs: str = ""
    part: bool = False
    people: bool = False


CLAIM = (
    Item("1", "named as a study of AI, with the kind of method", "Summary"),
    Item("2", "summary of design, methods, results, conclusions", "Summary", part=True),
    Item("3", "background, intended use and role", "Intended use", part=True),
    Item("4", "aims, objectives, hypotheses"),
    Item("5", "prospective or retrospective", people=True),
    Item("6", "goal of the study"),
    Item("7", "data sources", "Data", "data", part=True),
    Item("8", "inclusion and exclusion criteria", people=True),
    Item("9", "preprocessing", "Preprocessing", "preprocessing"),
    Item("10", "selection of data subsets"),
    Item("11", "de-identification", people=True),
    Item("12", "missing data", "Preprocessing", part=True),
    Item("13", "image acquisition protocol", "Data", people=True),
    Item("14", "how the reference standard was obtained", "Reference standard", people=True),
    Item("15", "why this reference standard", people=True),
    Item("16", "source of its annotations", people=True),
    Item("17", "annotation of the test set", people=True),
    Item("18", "variability between and within annotators", people=True),
    Item("19", "how data were assigned to partitions", "Partition", "splits", part=True),
    Item("20", "level at which partitions are disjoint", "Partition", "patients"),
    Item("21", "intended sample size"),
    Item("22", "the model in detail", "Model", "model"),
    Item("23", "software and versions", "Software", "versions"),
    Item("24", "initialisation of parameters", "Model", "model"),
    Item("25", "training: augmentation, settings", "Training", "training"),
    Item("26", "how the final model was selected", "Training", "training"),
    Item("27", "ensembling", "Training", "training"),
    Item("28", "metrics of performance", "Evaluation"),
    Item("29", "measures of uncertainty", "Evaluation"),
    Item("30", "robustness or sensitivity analysis"),
    Item("31", "explainability, and how it was validated"),
    Item("32", "evaluation on internal data", "Evaluation"),
    Item("33", "testing on external data"),
    Item("34", "clinical trial registration", people=True),
    Item("35", "numbers included and excluded", "Partition", "splits", part=True),
    Item("36", "demographic and clinical characteristics by partition", people=True),
    Item("37", "performance with uncertainty", "Evaluation"),
    Item("38", "diagnostic performance with precision", "Evaluation"),
    Item("39", "failure analysis", "Failure analysis", part=True),
    Item("40", "limitations", "Limitations", part=True),
    Item("41", "implications for practice", people=True),
    Item("42", "protocol or further technical details"),
    Item("43", "availability of software, model, data", "Availability", part=True),
    Item("44", "funding and role of funders"),
)

TRIPOD_AI = (
    Item("1", "title: development or evaluation, population, outcome", "Summary", part=True),
    Item("2", "abstract", "Summary", part=True),
    Item("3a", "healthcare context and rationale", people=True),
    Item("3b", "target population, purpose, users", people=True),
    Item("3c", "known health inequalities", people=True),
    Item("4", "objectives"),
    Item("5a", "sources of data, representativeness", "Data", "data", part=True),
    Item("5b", "dates of the data", people=True),
    Item("6a", "setting and centres", people=True),
    Item("6b", "eligibility", people=True),
    Item("6c", "treatments", people=True),
    Item("7", "data preparation and quality checks", "Preprocessing", "preprocessing", part=True),
    Item("8a", "definition of the outcome", "Reference standard", people=True),
    Item("8b", "assessors of the outcome", people=True),
    Item("8c", "blinding of the outcome's assessment", people=True),
    Item("9a", "choice of predictors", "Model", "model"),
    Item("9b", "definition of predictors", "Data", "data", part=True),
    Item("9c", "assessors of predictors", people=True),
    Item("10", "how the study size was arrived at"),
    Item("11", "missing data", "Preprocessing", part=True),
    Item("12a", "use of the data, partition", "Partition", "splits"),
    Item("12b", "handling of predictors", "Preprocessing", "preprocessing"),
    Item("12c", "type of model, building steps, tuning", "Training", "training", part=True),
    Item("12d", "heterogeneity across clusters", people=True),
    Item("12e", "measures and plots of performance", "Evaluation"),
    Item("12f", "model updating, recalibration", "Calibration", "temperature"),
    Item("12g", "how predictions are calculated", "Model", "model"),
    Item("13", "class imbalance", "Training", "training", part=True),
    Item("14", "fairness", "Subgroups", "subgroups", part=True, people=True),
    Item("15", "output of the model, thresholds", "Model", "model"),
    Item("16", "differences between development and evaluation data", "Partition", part=True),
    Item("17", "ethical approval and consent", people=True),
    Item("18a", "funding"),
    Item("18b", "conflicts of interest"),
    Item("18c", "protocol"),
    Item("18d", "registration"),
    Item("18e", "data sharing", "Availability", "data", part=True),
    Item("18f", "code sharing", "Availability", part=True),
    Item("19", "patient and public involvement", people=True),
    Item("20a", "flow of participants", people=True),
    Item("20b", "characteristics of participants", people=True),
    Item("20c", "comparison with the development data", "Partition", "splits", part=True),
    Item("21", "participants and outcomes in each analysis", "Partition", "splits", part=True),
    Item("22", "the full model, for new individuals", "Availability", part=True),
    Item("23a", "performance with intervals, also in subgroups", "Evaluation", part=True),
    Item("23b", "heterogeneity across clusters", people=True),
    Item("24", "results of updating", "Calibration", "temperature"),
    Item("25", "interpretation, fairness"),
    Item("26", "limitations", "Limitations", part=True),
    Item("27a", "handling of poor or missing input", people=True),
    Item("27b", "what users must do and know", people=True),
    Item("27c", "next steps"),
)
