"""The models of an export in OpenVINO: no TensorFlow once they are converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.errors import ScanRefused, ServingError
from tf_covid.exported import ExportedModels, described
from tf_covid.infer import Options
from tf_covid.result import QualityFlag
from tf_covid.runtime.behind import Behind
from tf_covid.runtime.convert import CARD, Compiled, converted


class OpenVinoModels(ExportedModels):
    """One or more models of one task in OpenVINO, on the processor of this machine.

    Each is converted when it is first asked for, by TensorFlow, into the cache folder; then
    TensorFlow is not imported any more.

    Args:
        sources: Shipped names or `.keras` files.
        behind: Lung models.
        on_message: Called with a line where a model is converted.
        threads: Threads that compute; None: one for each core.

    Raises:
        ModelError: If a model is missing, damaged, foreign or untrained, or if the models do not go
            together.
        ServingError: If OpenVINO is not installed, or cannot take a model.
        OutputError: If the cache folder cannot be written.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        behind: Behind | None = None,
        *,
        on_message: Callable[[str], None] = lambda text: None,
        threads: int | None = None,
    ) -> None:
        folders = [converted(source, behind or Behind(), on_message) for source in sources]
        self._compiled = [Compiled(folder, threads) for folder in folders]
        cards = [(folder / CARD).read_text("utf-8") for folder in folders]
        super().__init__(
            [
                described(text, "OpenVINO", str(source))
                for text, source in zip(cards, sources, strict=True)
            ],
            "OpenVINO",
        )

    @property
    def versions(self) -> dict[str, str]:
        """Of OpenVINO."""
        return {"openvino": metadata.version("openvino")}

    def asked(self, index: int, hu: np.ndarray) -> dict[str, Any]:
        """What a model answers about a scan; see `ExportedModels.asked`.

        Raises:
            ScanRefused: If there is not enough memory for it.
            ServingError: If OpenVINO fails.
        """
        try:
            return self._compiled[index](hu)
        except (RuntimeError, MemoryError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, MemoryError) or "alloc" in text.lower():
                message = "There is not enough memory for this scan."
                raise ScanRefused([QualityFlag("too_large", "error", message)]) from error
            raise ServingError(f"OpenVINO failed: {text[-300:]}") from error


def of_options(
    options: Options,
    *,
    on_message: Callable[[str], None] = lambda text: None,
    threads: int | None = None,
) -> OpenVinoModels:
    """The models that `infer` asks for; raises what `OpenVinoModels` does.

    Args:
        options: What decides the answer.
        on_message: Called with a line where a model is converted.
        threads: Threads that compute; None: one for each core.
    """
    behind = Behind(options.lungs_model, options.lobes_model, options.allow_other_lungs)
    return OpenVinoModels(options.models, behind, on_message=on_message, threads=threads)
