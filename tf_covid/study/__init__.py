"""RUN → PAPER: what a run is worth, in the tables and figures of the paper.

records.py      answers on cases that the network had not seen, one table a task
predictions.py  predictions.csv
combine.py      folds joined, frozen models averaged
bootstrap.py    intervals over patients
metrics.py      accuracy, kappa, AUC and the rest, vectorised over the replicates
scores.py       CT scores beside the true one: the network's, and that read from the lobes
groups.py       Mann–Whitney with Holm, calibration, ROC, subgroups
paper.py        what the paper published
figures.py      confusion matrix, reliability, ROC, learning curves (on axes.py)
violins.py      true CT score by predicted class
seen.py         which cases the models had been trained on, in JSON and in sentences
study_figure.py a figure: what draws it, its numbers, its files (SVG, CSV)
study.py        study.json, study.html, figures/
comparison.py   comparison.json, comparison.html, figures/: runs and the paper side by side (with
                comparison_figures.py)
html.py         both pages (with layout.html.j2, study.html.j2, comparison.html.j2)
formatting.py   what the pages say: names of metrics, values, the headline

scikit-learn, SciPy, matplotlib and Jinja are imported by the functions that need them; TensorFlow
by none of these.
"""

from tf_covid.study.bootstrap import Bootstrap
from tf_covid.study.combine import ensemble, join, select
from tf_covid.study.comparison import compare
from tf_covid.study.metrics import from_matrix
from tf_covid.study.predictions import read_predictions, write_predictions
from tf_covid.study.records import (
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
    StudyError,
)
from tf_covid.study.study import build_study, write_study

__all__ = [
    "AnyPredictions",
    "Bootstrap",
    "LobePredictions",
    "LungPredictions",
    "Predictions",
    "SlicePredictions",
    "StudyError",
    "build_study",
    "compare",
    "ensemble",
    "from_matrix",
    "join",
    "read_predictions",
    "select",
    "write_predictions",
    "write_study",
]
