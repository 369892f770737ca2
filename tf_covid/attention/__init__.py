"""LOGITS → MAP: where a network looked, on the grid of the scan."""

from __future__ import annotations

from typing import Any

from tf_covid.attention.grid import Axis, feature_axes, onto_scan

__all__ = [
    "Axis",
    "Cut",
    "Split",
    "TieSharingMaxPool3D",
    "attention_map",
    "class_logit",
    "expected_class",
    "explained_by",
    "feature_axes",
    "onto_scan",
    "split",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name in __all__:
        from tf_covid.attention import gradcam

        return getattr(gradcam, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
