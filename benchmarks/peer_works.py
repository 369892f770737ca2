"""One work of a peer, in an environment of the peers: run by `peers.py`.

    PYTHON peer_works.py WORK FOLDER REPEATS

Prints a line of JSON: `seconds`, the median after a first time, and `libraries` with their
versions. Weights are random throughout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def read_simpleitk(folder: Path) -> tuple[Callable[[], Any], str]:
    """The series, by SimpleITK."""
    import SimpleITK

    def work() -> object:
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "scan"))
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files))

    return work, "SimpleITK"


def read_monai(folder: Path) -> tuple[Callable[[], Any], str]:
    """The series, by MONAI's reader on pydicom."""
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True, reader="PydicomReader")
    return lambda: load(str(folder / "scan")), "monai"


def read_gdcm(folder: Path) -> tuple[Callable[[], Any], str]:
    """Each slice by pydicom, decoded by GDCM."""
    import numpy as np
    import pydicom

    def work() -> object:
        slices = [pydicom.dcmread(file) for file in sorted((folder / "scan").iterdir())]
        for one in slices:
            one.pixel_array_options(decoding_plugin="gdcm")
        return np.stack([one.pixel_array for one in slices])

    return work, "pydicom"


def lungmask_network(folder: Path) -> tuple[Callable[[], Any], str]:
    """The U-Net of lungmask, as it is called there: 20 slices at a time."""
    import numpy as np
    import torch

    network, slices = _lungmask_unet(), np.load(folder / "slices.npy")[:, np.newaxis]

    def work() -> None:
        with torch.inference_mode():
            for first in range(0, len(slices), 20):
                network(torch.from_numpy(slices[first : first + 20]))

    return work, "lungmask"


def openvino_i3d(folder: Path) -> tuple[Callable[[], Any], str]:
    """Our I3D in OpenVINO, float32."""
    return _in_openvino(folder, "f32")


def openvino_i3d_bfloat16(folder: Path) -> tuple[Callable[[], Any], str]:
    """Our I3D in OpenVINO, bfloat16."""
    return _in_openvino(folder, "bf16")


def _in_openvino(folder: Path, precision: str) -> tuple[Callable[[], Any], str]:
    import numpy as np
    import openvino

    core, clip = openvino.Core(), np.load(folder / "clip.npy")
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(core.read_model(folder / "i3d"), "CPU", options)
    if (held := model.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
        raise SystemExit(f"OpenVINO computes in {held} here, not in {precision}")
    return lambda: model([clip]), "openvino"


def torch_i3d(folder: Path) -> tuple[Callable[[], Any], str]:
    """Our I3D in PyTorch, by Keras."""
    import keras
    import numpy as np
    import torch

    if keras.backend.backend() != "torch":
        raise SystemExit("KERAS_BACKEND has to be torch")
    network, clip = keras.saving.load_model(folder / "i3d.keras"), np.load(folder / "clip.npy")

    def work() -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(clip), training=False)

    return work, "torch"


def monai_gradcam(folder: Path) -> tuple[Callable[[], Any], str]:
    """MONAI's Grad-CAM of its own 3D DenseNet, at its last features, on a clip of the same size."""
    import numpy as np
    import torch
    from monai.networks.nets import DenseNet121
    from monai.visualize import GradCAM

    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=5).eval()
    clip = torch.from_numpy(np.moveaxis(np.load(folder / "clip.npy"), -1, 1).copy())
    explain = GradCAM(nn_module=network, target_layers="class_layers.relu")

    def classify() -> None:
        with torch.inference_mode():
            network(clip)

    classify()
    _FACTS["network_s"] = _timed(classify)
    return lambda: explain(clip), "monai"


#: A work that takes so many seconds is measured once, the first time.
LONG_S = 30.0

#: What a work says beside its seconds.
_FACTS: dict[str, Any] = {}


def _lungmask_unet() -> torch.nn.Module:
    from lungmask.resunet import UNet

    # As lungmask's own `get_model` builds that of R231.
    return UNet(
        n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
    ).eval()


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


WORKS = (
    read_simpleitk,
    read_monai,
    read_gdcm,
    lungmask_network,
    openvino_i3d,
    openvino_i3d_bfloat16,
    torch_i3d,
    monai_gradcam,
)


def main() -> None:
    """Measure one work."""
    name, folder, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    make = next(work for work in WORKS if work.__name__ == name)
    work, library = make(folder)
    seconds = [_timed(work)]
    if seconds[0] < LONG_S:
        seconds = [_timed(work) for _ in range(repeats)]
    libraries = {library: metadata.version(library)}
    print(json.dumps({"seconds": statistics.median(seconds), "libraries": libraries} | _FACTS))


if __name__ == "__main__":
    main()
