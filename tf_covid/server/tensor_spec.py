"""Name, type and shape of an input or output of a signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.server.errors import InvalidArgument
from tf_covid.tensor import Message


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Args:
        name: Name of the tensor in the signature.
        dtype: TensorFlow's type.
        shape: Length of each axis, None where any will do; None: any rank.
    """

    name: str
    dtype: Any
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, name: str, info: Message) -> TensorSpec:
        """From a `TensorInfo`."""
        shape = tf.TensorShape(info.tensor_shape)
        return cls(
            name,
            tf.dtypes.as_dtype(info.dtype),
            None if shape.rank is None else tuple(shape.as_list()),
        )

    def check(self, array: np.ndarray) -> None:
        """Compare a shape with that of the signature.

        Raises:
            InvalidArgument: If they do not agree.
        """
        if self.shape is None:
            return
        fits = array.ndim == len(self.shape) and all(
            expected in (None, size) for expected, size in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            expected = ",".join("?" if size is None else str(size) for size in self.shape)
            got = ",".join(map(str, array.shape))
            raise InvalidArgument(
                f"input '{self.name}': has shape [{got}], but the signature wants [{expected}]"
            )

    def check_numbers(self, array: np.ndarray) -> None:
        """That every number is one: a network answers NaN as if it had seen a scan.

        Raises:
            InvalidArgument: If a number is NaN or infinite.
        """
        if not self.dtype.is_floating:
            return
        wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
        if wrong:
            raise InvalidArgument(
                f"input '{self.name}': {wrong} of {array.size} numbers are NaN or infinite"
            )
