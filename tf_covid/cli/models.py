"""Models that answer in this process, for the commands that ask them; imported when first asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_covid.infer import Options
    from tf_covid.pipeline import Models


def loader(options: Options) -> Callable[[], Models[Any]]:
    """What loads the models of these options, in the runtime that they name."""
    return partial(_openvino if options.runtime == "openvino" else _tensorflow, options)


def _tensorflow(options: Options) -> Models[Any]:
    """The models in TensorFlow, from graphs that were kept if there are any."""
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.runtime.graphs import of_options

    return of_options(options, on_message=console.note)


def _openvino(options: Options) -> Models[Any]:
    """The models in OpenVINO; TensorFlow is imported where one has to be converted."""
    from tf_covid import console
    from tf_covid.runtime.models import of_options

    def note(message: str) -> None:
        console.note(message)
        console.import_tensorflow()

    return of_options(options, on_message=note)
