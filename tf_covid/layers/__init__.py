"""SCAN → CLIP: Keras layers of plain TF ops, the one truth for pre-processing.

Training, inference, export and serving run these same layers on the same device. They compute in
float32 whatever the policy, and cast at the end; batch, depth, height and width are free. Importing
this package registers them.
"""

from tf_covid.layers.lobes import ContextGate, LobeSegmenter
from tf_covid.layers.lungs import LungBox, LungSegmenter
from tf_covid.layers.slices import ClipSampler, SliceRule
from tf_covid.layers.window import HUWindow, MaskedClip, input_scaling

__all__ = [
    "ClipSampler",
    "ContextGate",
    "HUWindow",
    "LobeSegmenter",
    "LungBox",
    "LungSegmenter",
    "MaskedClip",
    "SliceRule",
    "input_scaling",
]
