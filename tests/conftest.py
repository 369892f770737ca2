"""What every test may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The phantom's products are small: on a busy machine BLAS' threads would wait for each other.
# Before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Files' contents are named after their argument.

    They may hold the second they were made in (gzip, zip), and workers that collect in different
    seconds would not agree on the tests' names."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A run that must end in time (.ci/run on a slow machine) says what it left out."""
    until = os.environ.get("TF_COVID_TESTS_UNTIL")
    if until and time.time() > float(until):
        pytest.skip("the time of this run is over: make test-all has no limit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a machine lacks is one line of the summary, however many tests are skipped for it."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(Path(__file__).parent), None, report.longrepr[2])
    return report


@pytest.fixture(scope="session", autouse=True)
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `infer` keeps for its next start lies with what tests made, and helps all of them."""
    folder = tmp_path_factory.getbasetemp()
    # Several processes of one run share it; alone, a run has its own folder.
    folder = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFCOVID_CACHE", str(folder / "tfcovid-cache"))
        yield


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real scans named in `TF_COVID_REAL_CT`; the test is skipped without it."""
    folder = os.environ.get("TF_COVID_REAL_CT")
    if not folder:
        pytest.skip("needs real scans: set TF_COVID_REAL_CT to their folder (CONTRIBUTING.md)")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"TF_COVID_REAL_CT names {folder}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def loaded_once() -> Iterator[None]:
    """Shipped models that `tfcovid infer` asks for again in this process are those of before.

    Loading and tracing them takes three times as long as a small answer.
    """
    from tf_covid.infer import Run
    from tf_covid.weights import catalog

    load, kept = Run.models.func, {}

    def models(run: Run) -> Any:
        options = run.options
        lungs = {options.lungs_model, options.lobes_model} - {None, "none"}
        if run._remote is not None or not {*options.models, *lungs} <= catalog.shipped().keys():
            return load(run)
        key = (options.models, options.lungs_model, options.lobes_model)
        key = (*key, options.precision, options.allow_other_lungs)
        if key not in kept:
            kept[key] = load(run)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "models", property(models))
        yield


@pytest.fixture(scope="session")
def threshold_unet() -> Callable[[dict[str, Any]], Any]:
    """Builder of a U-Net, from its arguments, whose weights are set by hand.

    Lung below −400 HU, disease above −700.
    """
    import keras
    import numpy as np

    from tf_covid.models import UNet

    def build(arguments: dict[str, Any]) -> Any:
        unet, outputs = UNet(**arguments), arguments["outputs"]
        for layer in unet.layers:
            if isinstance(layer, keras.layers.Conv2D) and not isinstance(
                layer, keras.layers.Conv2DTranspose
            ):
                kernel = np.zeros(layer.kernel.shape, np.float32)
                kernel[kernel.shape[0] // 2, kernel.shape[1] // 2, 0, 0] = (
                    1.0  # the slice itself goes through
                )
                layer.set_weights([kernel, *layer.get_weights()[1:]])
        kernel = np.zeros((1, 1, arguments["filters"], outputs), np.float32)
        kernel[0, 0, 0] = [-100.0, 100.0][:outputs]
        unet.get_layer("logits").set_weights(
            [kernel, np.array([50.0, -100 * 400 / 1400], np.float32)[:outputs]]
        )
        return unet

    return build


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of ten small synthetic patients, two of each severity class, as NIfTI."""
    from tf_covid.phantom.cohort import write_cohort

    return write_cohort(
        tmp_path_factory.mktemp("cohort"), 10, seed=3, size=64, slices=60, format="nifti"
    )
