"""Names for the values of libraries that describe their types wrongly or not at all."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A `tf.Tensor`, a `keras.KerasTensor` or what either is made from. Neither library's types hold.
Tensor: TypeAlias = Any

#: What Keras takes as `dtype`: a name ("float32", "mixed_bfloat16"), a `keras.DTypePolicy`, None.
DType: TypeAlias = Any
