"""The models of an export in OpenVINO: no TensorFlow once they are converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.errors import ModelError, ScanRefused, ServingError
from tf_covid.exported import ExportedModels, described
from tf_covid.extras import optional_import
from tf_covid.result import QualityFlag
from tf_covid.runtime import cache
from tf_covid.runtime.convert import CARD, GRAPH, Behind, converted

#: Folder, beside a converted model, of what OpenVINO compiled of it for this machine.
_COMPILED = "compiled"

#: What OpenVINO calls the precisions that it may compute with.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoModels(ExportedModels):
    """One or more models of one task in OpenVINO, on the processor of this machine.

    Each is converted when it is first asked for, by TensorFlow, into the cache folder; then
    TensorFlow is not imported any more.

    Args:
        sources: Shipped names or `.keras` files.
        behind: Lung models.
        precision: "float32" or "bfloat16".
        on_message: Called with a line where a model is converted.

    Raises:
        ModelError: If a model is missing, damaged, foreign or untrained, if the models do not go
            together, or if the processor has no bfloat16.
        ServingError: If OpenVINO is not installed, or cannot take a model.
        OutputError: If the cache folder cannot be written.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        behind: Behind | None = None,
        *,
        precision: str = "float32",
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        core = optional_import("openvino", "openvino").Core()
        if precision == "bfloat16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise ModelError("this processor has no bfloat16: --precision float32")
        folders = [converted(source, behind or Behind(), on_message) for source in sources]
        self._compiled = [_compiled(core, folder, precision) for folder in folders]
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
        inputs = {"hu": hu[np.newaxis], "depth": np.array([len(hu)], np.int32)}
        try:
            results = self._compiled[index](inputs).to_dict()
        except (RuntimeError, MemoryError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, MemoryError) or "alloc" in text.lower():
                message = "There is not enough memory for this scan."
                raise ScanRefused([QualityFlag("too_large", "error", message)]) from error
            raise ServingError(f"OpenVINO failed: {text[-300:]}") from error
        # Copies: OpenVINO writes the next answer into the same memory.
        return {
            next(iter(output.get_names())): np.array(values) for output, values in results.items()
        }


def _compiled(core: Any, folder: Path, precision: str) -> Any:  # noqa: ANN401  # OpenVINO's own
    """A converted model for this machine's processor; what was compiled before is used again."""
    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    place = folder / _COMPILED
    # A folder that somebody else has filled may be read-only: then it is compiled each time.
    with suppress(OSError):
        place.mkdir(exist_ok=True)
        for path in {*place.iterdir()} - {place / name for name in cache.intact(place)}:
            path.unlink()
        options["CACHE_DIR"] = str(place)
    try:
        compiled = core.compile_model(str(folder / GRAPH), "CPU", options)
    except RuntimeError as error:
        raise ServingError(f"OpenVINO cannot run {folder.name}: {str(error)[:500]}") from error
    with suppress(OSError):
        cache.seal(place, sorted(path.name for path in place.glob("*.blob")))
    return compiled
