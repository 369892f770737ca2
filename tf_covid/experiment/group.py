"""The workers of a run, once they have met and know that they were asked for the same."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_covid.experiment.run_folder import FitRequest
from tf_covid.training import checkpoint
from tf_covid.training.meeting import WAIT_S, meet
from tf_covid.training.tf_config import TfConfig
from tf_covid.training.worker_group import CONNECT_S


def meet_workers(
    request: FitRequest, *, on_message: Callable[[str], None], wait_s: float = WAIT_S
) -> TfConfig:
    """The workers that TF_CONFIG names, all of them there, for a `WorkerGroup`.

    Args:
        request: What this worker was asked for: cohort, weights and settings have to be the same on
            all of them, paths need not.
        on_message: Hears whom it waits for.
        wait_s: Longest wait for the others, in seconds.

    Raises:
        TrainingError: If TF_CONFIG is wrong, a worker does not come, or was asked for something
            else.
    """
    config = TfConfig.read()
    asked = request.identity() | checkpoint.library_versions()
    asked["device"] = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    meet(config, asked, on_message=on_message, wait_s=wait_s)
    on_message(
        f"worker {config.index} of {len(config.addresses)}: all are there and connect; should one"
        f" be gone again, this process ends after {CONNECT_S:.0f} s"
    )
    return config
