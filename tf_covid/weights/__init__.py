"""Weights with their contract: what ships, how a file is read safely, how one is written.

Catalogue and contract import no TensorFlow; everything that builds a network does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tf_covid.weights.contract import Contract, Preprocessing

if TYPE_CHECKING:
    from tf_covid.weights.files import (
        LoadedModel,
        contract_of,
        load,
        load_model,
        read_contract,
        save_model,
        weights_sha256,
    )

__all__ = [
    "Contract",
    "LoadedModel",
    "Preprocessing",
    "contract_of",
    "load",
    "load_model",
    "read_contract",
    "save_model",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name in __all__:
        from tf_covid.weights import files

        return getattr(files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
