"""What a network is taught by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.cohort.planes import OUTSIDE_LOBES, UNKNOWN
from tf_covid.cohort.training_input import COUNTED, LABELS_EACH
from tf_covid.severity import CLASS_UPPER_SCORES
from tf_covid.tensor import Tensor
from tf_covid.tissues import CLASSES, LOBE_CLASSES

Loss = Callable[[Any, Any], Any]

#: Classes of a lobe network that are in few cells, and how much more their cells weigh. Effusion is
#: the rarest, and has the density of white lung.
RARE_WEIGHTS = {"airway": 2.0, "pleural effusion": 8.0, "stomach": 3.0, "bowel": 3.0}

#: Where `VolumeTrainingInput` counts what is not of a class.
_OUTSIDE, _UNKNOWN = OUTSIDE_LOBES % COUNTED, UNKNOWN % COUNTED


def cross_entropy(weights: Sequence[float]) -> Loss:
    """Cross-entropy of the class, as in the paper.

    Args:
        weights: Weight of each class, shape (classes,).
    """

    def loss(label: Tensor, logits: Tensor) -> Tensor:
        label = tf.reshape(tf.cast(label, tf.int32), [-1])
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(label, tf.cast(logits, tf.float32))
        return tf.reduce_mean(entropy * tf.gather(tf.constant(weights, tf.float32), label))

    return loss


def ordinal(weights: Sequence[float]) -> Loss:
    """Mean over the thresholds of the cross-entropy of “worse than class k?”.

    Two classes off cost more than one.

    Args:
        weights: Weight of each class, shape (classes,).
    """

    def loss(label: Tensor, logits: Tensor) -> Tensor:
        label = tf.reshape(tf.cast(label, tf.int32), [-1])
        shares = tf.nn.softmax(tf.cast(logits, tf.float32))
        classes = len(weights)
        # P(class > k), k = 0 … classes − 2.
        beyond = tf.clip_by_value(tf.cumsum(shares, axis=1, reverse=True)[:, 1:], 1e-6, 1 - 1e-6)
        truth = tf.cast(label[:, tf.newaxis] > tf.range(classes - 1)[tf.newaxis], tf.float32)
        entropy = -(truth * tf.math.log(beyond) + (1 - truth) * tf.math.log1p(-beyond))
        return tf.reduce_mean(
            tf.reduce_mean(entropy, axis=1) * tf.gather(tf.constant(weights, tf.float32), label)
        )

    return loss


def score_loss(truth: Tensor, score: Tensor) -> Tensor:
    """Squared error of the CT score, in units of its range of 25.

    A score that is not known (NaN) counts nothing.
    """
    known = tf.math.is_finite(truth)
    off = tf.where(known, (score - tf.where(known, truth, 0.0)) / CLASS_UPPER_SCORES[-1], 0.0)
    return tf.math.divide_no_nan(
        tf.reduce_sum(tf.square(off)), tf.reduce_sum(tf.cast(known, tf.float32))
    )


def share_loss(truth: Tensor, fraction: Tensor) -> Tensor:
    """Squared error of a share of 0 … 1."""
    return tf.reduce_mean(tf.square(fraction - truth))


def mask_loss(mask: Tensor, logits: Tensor, *, pixel_weights: Sequence[float] = (1.0,)) -> Tensor:
    """Cross-entropy plus soft Dice of each mask over the whole batch.

    Args:
        mask: float32 (N, H, W, M), 0 or 1.
        logits: Logits, in the shape of `mask`.
        pixel_weights: How much more a pixel within each mask weighs in the cross-entropy than one
            outside; one for all masks, or one each, (M,).
    """
    logits = tf.cast(logits, tf.float32)
    entropy = tf.reduce_mean(
        tf.nn.weighted_cross_entropy_with_logits(
            mask, logits, tf.constant(pixel_weights, tf.float32)
        )
    )
    fraction = tf.sigmoid(logits)
    inside = [tf.reduce_sum(part, axis=(0, 1, 2)) for part in (fraction * mask, fraction, mask)]
    overlap = (2 * inside[0] + 1) / (inside[1] + inside[2] + 1)
    return 2 * entropy + 0.5 * tf.reduce_sum(1 - overlap)


def disease_loss(fraction: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of the diseased share of each cell, mean over the cells.

    Diseased cells weigh more, being rare.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=fraction, logits=tf.cast(logits, tf.float32)
    )
    return tf.reduce_mean(entropy * (1.0 + 3.0 * fraction))


def tissue_loss(classes: int) -> Loss:
    """Cross-entropy of the share of each class in a cell, plus soft Dice of the lobes.

    The mean is over what is known of the cells. Where no more is known than that it is no lobe, the
    shares of all other classes are summed.

    Args:
        classes: Outputs of the network: 6, background and the lobes; or all of `tissues.CLASSES`.
    """
    # Each label's class; a network of six outputs calls all tissues background.
    table = np.zeros((COUNTED, classes), np.float32)
    for label in range(len(CLASSES)):
        table[label, label if label < classes else 0] = 1.0
    if classes < len(CLASSES):
        table[_OUTSIDE, 0] = 1.0
    weights = [RARE_WEIGHTS.get(name, 1.0) for name in CLASSES[:classes]]

    def loss(counts: Tensor, logits: Tensor) -> Tensor:
        counts = tf.cast(counts, tf.float32) / LABELS_EACH
        logits = tf.cast(logits, tf.float32)
        logs = tf.nn.log_softmax(logits)
        shares = tf.exp(logs)
        truth = tf.tensordot(counts, tf.constant(table), 1)
        known = 1.0 - counts[..., _UNKNOWN]
        lobes, true_lobes = shares[..., LOBE_CLASSES], truth[..., LOBE_CLASSES]
        entropy = -tf.reduce_sum(truth * logs * tf.constant(weights, tf.float32))
        if classes == len(CLASSES):
            inside = tf.minimum(tf.reduce_sum(lobes, axis=-1), 1.0 - 1e-6)
            entropy -= tf.reduce_sum(counts[..., _OUTSIDE] * tf.math.log1p(-inside))
        entropy /= tf.maximum(tf.reduce_sum(known), 1.0)
        axes = (0, 1, 2, 3)
        overlap = 2.0 * tf.reduce_sum(lobes * true_lobes, axes) + 1.0
        total = tf.reduce_sum(lobes * known[..., tf.newaxis], axes)
        total += tf.reduce_sum(true_lobes, axes) + 1.0
        return entropy + tf.reduce_mean(1.0 - overlap / total)

    return loss


def flips_loss(flipped: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of whether each axis of a scan was flipped.

    Args:
        flipped: float32 (N, 3), 0 or 1.
        logits: (N, 3).
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(flipped, tf.cast(logits, tf.float32))
    return tf.reduce_mean(entropy)
