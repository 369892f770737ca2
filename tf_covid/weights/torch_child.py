"""Torch's own reader, in a process of its own.

Its zips are read in C++, and what its pickles call is its own code.

`foreign.py` runs `python -m tf_covid.weights.torch_child FILE FOLDER`, after
`pickles.check_pickle`, and looks at what it left there as at any file: the same two files as
`bundle.py`, within the same bounds.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from tf_covid.errors import UnsafeFile
from tf_covid.tensor import Tensor
from tf_covid.weights.bundle import ANSWER, TENSORS, limit


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a state_dict.

    Args:
        path: A file of `torch.save`.

    Returns:
        Name → values, and name → type and shape of all that are not floating-point tensors.

    Raises:
        UnsafeFile: If it is damaged, holds anything but named tensors, or promises more than it
            holds.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly everything
        facts = str(error).partition("\n")[0]
        raise UnsafeFile(
            "damaged", f"{path}: torch cannot read it as weights only ({facts})"
        ) from error
    # Training scripts put the weights beside optimizer and epoch.
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise UnsafeFile(
            "unsafe_pickle", f"{path}: holds a {type(state).__name__}, not named tensors"
        )
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, str] = {}
    for key, value in state.items():
        name = str(key)
        if name in tensors or name in others:
            raise UnsafeFile("ambiguous_name", f"{path}: holds {name!r} twice")
        results = _plain(f"{path}: {name}", value)
        if isinstance(results, np.ndarray):
            tensors[name] = results
        else:
            others[name] = results
    return tensors, others


def _plain(name: str, value: Tensor) -> np.ndarray | str:
    """The float32 values of a tensor, or what stands there instead."""
    if isinstance(value, (int, float, str, list, tuple, dict)) or value is None:
        return type(value).__name__  # a setting that a training script keeps among the weights
    if str(value.layout) != "torch.strided" or value.is_quantized or value.device.type != "cpu":
        raise UnsafeFile("not_numbers", f"{name} is not a plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UnsafeFile(
            "shape_bomb", f"{name} of shape {list(value.shape)} asks for more than the file holds"
        )
    value = value.detach()
    if not value.is_floating_point():
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return np.ascontiguousarray(value.float().numpy())


def main(path: Path, folder: Path) -> None:
    """Read a file within limits, and leave in a folder what was found."""
    from safetensors.numpy import save_file

    answer: dict[str, object]
    try:
        import torch  # before the limits: what it takes is not the file's doing

        if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
            # CVE-2025-32434: before 2.6 `weights_only=True` could be led to run code.
            raise UnsafeFile(
                "torch_too_old",
                f"{path}: the reader of torch {torch.__version__} is not safe; 2.6 is",
            )
        limit(path.stat().st_size)
        tensors, others = read(path)
        save_file(
            {str(index): value for index, value in enumerate(tensors.values())}, folder / TENSORS
        )
        answer = {"names": list(tensors), "others": others}
    except ImportError:
        facts = (
            f"{path}: reading it needs torch (pip install -e '.[torch]' in the checkout); or save"
            " the same state_dict as .safetensors where torch is installed"
            " (safetensors.torch.save_file), which needs nothing here"
        )
        answer = {"code": "torch_missing", "facts": facts}
    except UnsafeFile as error:
        answer = {"code": error.code, "facts": str(error).removeprefix(f"{error.code}: ")}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
