"""Severity of COVID-19 from a chest CT, with its evidence. Research software, not a medical device.

The map of the house, in the order of imports; a room may use those above it, never one below:

    errors, tensor              what can go wrong; types of what TensorFlow and Keras hand over
    atomic, extras              files that are whole or not there; libraries that an extra brings
    severity, tissues           the study's scales; the numbered tissues around the lungs
    lung_voxels.py              side, lobe and disease of each voxel of the lungs, in one byte
    tasks, result               a row a task; what we say about one scan
    scan/                       BYTES → SCAN: int16 HU in one canonical order, its quality flags
    layers/                     SCAN → CLIP: window, lung mask and box, slice rule, resampling
    models/                     CLIP → LOGITS: U-Nets, LTC, I3D, Inception-v1; stock Keras layers
    weights/                    what ships, with origin and sha256; reading a model file safely
    preprocessor.py             the layers and the U-Net: int16 HU → clip, once for all rooms
    stratifier_model.py         a preprocessor and a network as one Keras model
    grids.py                    after the graph: volumes of one grid on another, and boxes
    lobes.py, lungs.py          after the graph: left and right, five lobes, volumes, involvement
    attention/                  LOGITS → MAP: Grad-CAM, brought onto the source grid
    answer.py                   what networks answer about a scan, on any backend
    exported.py                 models that answer all about a scan in one call: an export
    local.py                    the models of this process, asked one scan at a time
    page/                       what report and study share: colours, formats, base page
    report/                     RESULT → FILES: montage, report, maps
    dicom_results/              RESULT → DICOM: segmentations, summary, structured report
    pipeline.py                 `stratify`: from scan to result, on one screen
    cohort/                     MANY SCANS: the manifest and its cases; folds, cache, tf.data
    phantom/                    a synthetic chest that we know everything about
    study/                      PREDICTIONS → PAPER: its tables and figures, without TensorFlow
    training/                   one network of a fold, and how the shipped weights were made
    outcomes.py                 what became of each case: in its folder, in summary.csv
    infer.py                    many inputs, one answer each; parallel.py: several at a time
    experiment/                 MANIFEST → RUN: `tfcovid fit` and `tfcovid evaluate`
    export/                     MODEL → SAVEDMODEL for TF Serving
    client/                     a server, ours or TF Serving, instead of the models here
    runtime/                    ANSWERS FROM WHAT WAS MADE ONCE: kept graphs; OpenVINO
    cluster/                    MANY SCANS → MANY MACHINES: workers of a Ray
    pacs/                       ARCHIVE ↔ FILES: a study out of one, results into one
    watch/                      ARCHIVES → ANSWERS: every new chest CT once
    server/                     SAVEDMODEL → ANSWERS: TF Serving's REST (http/) and gRPC API
    verify/                     Keras, SavedModel, OpenVINO and server, compared value by value
    doctor/                     what is installed and works
    console.py, cli/            what a terminal shows; the commands

A volume is (D, H, W) throughout: D from head to feet, H from anterior to posterior, W from the
patient's right to left.

    import tf_covid                                     # imports neither TensorFlow nor NumPy
    scan = tf_covid.read("folder-or-file")
    result = tf_covid.stratify(scan)
    net = tf_covid.load_model("severity-i3d")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_covid import models
    from tf_covid.errors import ScanRefused, TfCovidError
    from tf_covid.pipeline import stratify
    from tf_covid.result import Result
    from tf_covid.scan import Scan, find_cases, read
    from tf_covid.stratifier_model import stratifier
    from tf_covid.weights import load_model

__version__ = "0.1.0"

__all__ = [
    "Result",
    "Scan",
    "ScanRefused",
    "TfCovidError",
    "__version__",
    "find_cases",
    "load_model",
    "models",
    "read",
    "stratifier",
    "stratify",
]

#: Public name → module that holds it; imported when the name is first asked for.
_HOMES = {
    "Result": "result",
    "Scan": "scan",
    "ScanRefused": "errors",
    "TfCovidError": "errors",
    "find_cases": "scan",
    "load_model": "weights",
    "read": "scan",
    "stratifier": "stratifier_model",
    "stratify": "pipeline",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name == "models":
        return importlib.import_module("tf_covid.models")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"tf_covid.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
