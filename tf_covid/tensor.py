"""Names for values whose own types say nothing, or the wrong thing."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A `tf.Tensor`, a `keras.KerasTensor` or what either is made from. Neither library's types hold.
Tensor: TypeAlias = Any

#: What Keras takes as `dtype`: a name ("float32", "mixed_bfloat16"), a `keras.DTypePolicy`, None.
DType: TypeAlias = Any

#: A message of protobuf, or part of one: the generated classes have no types.
Message: TypeAlias = Any

#: A value of JSON, or a cell of a table, that somebody else wrote: whoever uses it checks it.
Json: TypeAlias = Any

#: The module `ray`, one of its actors or references: where it is not installed, nothing has a type.
Ray: TypeAlias = Any
