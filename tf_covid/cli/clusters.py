"""What `infer` and `fit` do with a cluster: options, checked, and what its workers did."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from tf_covid.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tf_covid.cluster import ClusterOptions
    from tf_covid.experiment.fit import FoldsPlan
    from tf_covid.experiment.run_folder import FitRequest
    from tf_covid.infer import Options
    from tf_covid.outcomes import CaseOutcome
    from tf_covid.scan import Case


def cluster_options(
    engine: str,
    address: str | None,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
) -> ClusterOptions | None:
    """What is asked of Ray; None for this process alone."""
    if engine == "local":
        if address is not None or cpus is not None or gpus is not None:
            raise OptionError("--address, --worker-cpus and --worker-gpus are of --engine ray.")
        return None
    from tf_covid.cluster import ClusterOptions

    return ClusterOptions(address, workers, cpus or 1, gpus or 0.0)


def check_cluster(
    cluster: ClusterOptions | None,
    inputs: tuple[Path | str, ...],
    out: Path | str,
    *,
    servers: tuple[str, ...],
    stores: bool,
) -> None:
    """See that what is asked for is something that a cluster can do, before any work."""
    url = isinstance(out, str)
    if cluster is None:
        if url:
            raise OptionError("--out: a URL needs --engine ray.")
        return
    if servers:
        raise OptionError(
            "--engine ray has models of its own, --server has them, too: one of both."
        )
    if url and stores:
        raise OptionError("--store sends what is in a folder: --out is a URL.")
    if cluster.asked is not None and any(isinstance(one, str) for one in inputs):
        raise OptionError(
            "--engine ray on other machines needs inputs that they see; a study that is fetched"
            " from an archive lies on this one."
        )


def outcomes_on_cluster(
    cases: Iterable[Case],
    out: Path | str,
    options: Options,
    cluster: ClusterOptions,
    *,
    overwrite: bool,
    stores: bool,
) -> Iterator[CaseOutcome]:
    """What becomes of the cases on the workers of a Ray, as it becomes known."""
    from tf_covid import console
    from tf_covid.cluster import infer_on_cluster

    outcomes = infer_on_cluster(
        cases,
        str(out),
        options,
        cluster,
        overwrite=overwrite,
        yield_kept=stores,
        on_message=console.note,
    )
    return console.progress(outcomes, "infer", "case", 0)


def folds_elsewhere(
    request: FitRequest, cluster: ClusterOptions, cpus: int | None, gpus: float | None
) -> tuple[FitRequest, Callable[[FoldsPlan, Sequence[int]], None]]:
    """The request as a node understands it, and what trains folds on the workers of a Ray."""
    from tf_covid import console
    from tf_covid.cluster.folds import everywhere, folds_on_cluster
    from tf_covid.cluster.worker import share_gpus

    with console.start_up_hidden():
        share_gpus()
        console.start_tensorflow()
    return everywhere(request, cpus), functools.partial(
        folds_on_cluster,
        address=cluster.address,
        cpus=cpus,
        gpus=gpus,
        on_message=console.note,
    )
