"""Commands that read or make scans: `infer`, `check`, `phantom`."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tf_covid.cli.clusters import check_cluster, cluster_options, outcomes_on_cluster
from tf_covid.cli.guard import (
    FOLDER,
    archive_options,
    dicom_options,
    guarded,
    lung_labels,
    lung_model_options,
    model_option,
)
from tf_covid.errors import OptionError

if TYPE_CHECKING:
    from tf_covid.client.remote import RemoteModels
    from tf_covid.infer import Options
    from tf_covid.scan import Case


#: Scans that servers are asked about at a time, each by a thread and a reader of its own.
_MOST_ASKED = 64


class PathOrUrl(click.ParamType):
    """A path, or a URL, which stays text: it would lose one of its slashes as a path.

    Args:
        path: What a path has to be.
        url: Regular expression that every URL begins with.
    """

    def __init__(self, path: click.Path, url: str) -> None:
        self._path, self._url, self.name = path, re.compile(url), path.name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """The path, or the text."""
        if isinstance(value, str) and self._url.match(value):
            return value
        return self._path.convert(str(value), param, ctx)


_INPUT = PathOrUrl(click.Path(path_type=Path), "dicomweb:")
_OUTPUT = PathOrUrl(FOLDER, ".*://")


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=_INPUT, metavar="INPUT...")
@click.option(
    "--out",
    required=True,
    type=_OUTPUT,
    help=(
        "Folder of the answers: OUT/<case>/ and OUT/summary.csv. With --engine ray a URL of fsspec,"
        " too: s3://bucket/answers."
    ),
)
@model_option
@click.option(
    "--lungs",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Your own lung mask (NIfTI, NRRD, MHA), 0 outside and one value inside.",
)
@click.option(
    "--lungs-labels",
    callback=lung_labels,
    metavar="N,N",
    help="The labels of --lungs that are lung, e.g. 10,11,12,13,14 of TotalSegmentator.",
)
@lung_model_options
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--runtime",
    type=click.Choice(["tensorflow", "openvino"]),
    default="tensorflow",
    show_default=True,
    help=(
        "What computes in this process. openvino (an extra) starts in a fraction of the time, once"
        " it has converted the models into the cache folder."
    ),
)
@click.option(
    "--attention",
    type=click.Choice(["gradcam", "gradcam++", "layercam", "none"]),
    default="gradcam",
    show_default=True,
)
@click.option(
    "--attention-target",
    type=click.Choice(["severity", "class"]),
    default="severity",
    show_default=True,
    help="What raises severity, or what speaks for the predicted class.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace an answer of the same name to another question."
)
@click.option(
    "--keep-identifiers", is_flag=True, help="Put UIDs, patient id and name into result.json."
)
@dicom_options
@click.option(
    "--store",
    metavar="URL",
    help="Store the DICOM objects in an archive, by DICOMweb, and see that they are there.",
)
@archive_options
@click.option(
    "--one-case", is_flag=True, hidden=True, help="Answer nothing unless the input is one case."
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help=(
        "Let a server answer, ours or TF Serving: http://HOST:8501 or grpc://HOST:8500. --model is"
        " its name there; a token is read from the variable TFCOVID_TOKEN. Several share the scans,"
        " and one that fails is left out until it answers again."
    ),
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help=(
        "What the work is shared by. ray (an extra): workers with models of their own, on this"
        " machine or on the nodes of a cluster; a run that ended goes on where it was."
    ),
)
@click.option(
    "--address",
    metavar="A",
    help=(
        "The Ray to ask: auto, HOST:6379 or ray://HOST:10001. RAY_ADDRESS counts if it is not"
        " given; without either, Ray is started on this machine."
    ),
)
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    help=(
        "Scans that are being answered at a time: by --server, two for each if there are several;"
        " by --engine ray, as many as the nodes have room for."
    ),
)
@click.option("--worker-cpus", type=click.IntRange(1, 1024), help="Cores of each worker of ray; 1.")
@click.option(
    "--worker-gpus",
    type=click.FloatRange(0, 64),
    help="GPUs of each worker of ray; 0.25 lets four share one.",
)
@guarded
def infer(
    inputs: tuple[Path | str, ...],
    out: Path | str,
    models: tuple[str, ...],
    lungs: Path | None,
    lungs_labels: tuple[int, ...],
    lungs_model: str | None,
    lobes_model: str | None,
    allow_other_lungs: bool,
    precision: str,
    runtime: str,
    attention: str,
    attention_target: str,
    overwrite: bool,
    keep_identifiers: bool,
    dicom: bool,
    dicom_map: bool,
    dicom_pdf: bool,
    dicom_deidentified: bool,
    store: str | None,
    ca_file: Path | None,
    client_cert: Path | None,
    one_case: bool,
    servers: tuple[str, ...],
    engine: str,
    address: str | None,
    workers: int | None,
    worker_cpus: int | None,
    worker_gpus: float | None,
) -> bool:
    """Answer chest CTs: severity class, CT score, lungs, attention map, report.

    INPUT is a DICOM folder, a .zip, .tar or .tar.gz of one, NIfTI, NRRD, MetaImage, a folder of
    those, a manifest .csv, or a study in an archive, dicomweb:URL#StudyInstanceUID. Several
    patients, studies or volume files are several cases. Archives are asked with what the variables
    TFCOVID_DICOMWEB_USER, _PASSWORD and _TOKEN hold. Exits with 1 if any case was refused; the rest
    is done.
    """
    from tf_covid.scan.reader import Reader

    problems = 0
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader())  # starts while this process imports the rest
        from tf_covid import console
        from tf_covid.cli.archives import Archives
        from tf_covid.cli.models import loader
        from tf_covid.cohort.cases import cases_of
        from tf_covid.dicom_results.options import DicomOptions
        from tf_covid.infer import Options, Run, run_cases
        from tf_covid.parallel import run_in_threads

        options = Options(
            models,
            precision,
            attention,
            attention_target,
            lungs,
            keep_identifiers,
            lungs_labels,
            lungs_model,
            lobes_model,
            allow_other_lungs,
            DicomOptions.of_flags(
                dicom or store is not None, dicom_map, dicom_pdf, dicom_deidentified
            ),
            runtime,
        )
        options.check_runtime()
        cluster = cluster_options(engine, address, workers, worker_cpus, worker_gpus)
        _check_servers(servers, workers if cluster is None else None, options)
        check_cluster(cluster, inputs, out, servers=servers, stores=store is not None)
        archives = Archives(ca_file, client_cert, stack)
        into = None if store is None else archives.at(store)
        paths, lost = archives.fetched(inputs)
        problems += lost
        if not paths:
            return False
        coming = cases_of(paths, reader.find)
        if cluster is None or one_case or options.lungs is not None:
            cases = list(coming)
            cases = [_single(cases)] if one_case else cases
            options.check_cases(len(cases))
            coming = iter(cases)
        if cluster is not None:
            outcomes = outcomes_on_cluster(
                coming, out, options, cluster, overwrite=overwrite, stores=into is not None
            )
            return archives.shown(outcomes, into) + problems == 0
        folder = Path(out)
        count = min(workers or (2 * len(servers) if len(servers) > 1 else 1), len(cases)) or 1
        remotes = _remotes(servers, options, count, stack) if servers else [None]
        readers = [reader, *(stack.enter_context(Reader()) for _ in remotes[1:])]
        runs = [
            Run(
                folder,
                options,
                overwrite=overwrite,
                remote=remote,
                load_models=loader(options),
                reader=own,
            )
            for remote, own in zip(remotes, readers, strict=True)
        ]
        outcomes = (
            run_cases(runs[0], console.progress(cases, "infer", "name"))
            if len(runs) == 1
            else console.progress(run_in_threads(runs, cases), "infer", "case", len(cases))
        )
        problems += archives.shown(outcomes, into)
    return problems == 0


def _single(cases: list[Case]) -> Case:
    from tf_covid.scan.cases import only_case

    case = only_case(cases)
    if case is None:
        raise click.ClickException(
            f"several_cases: the upload holds {len(cases)} cases; send each for itself"
        )
    return case


def _check_servers(servers: tuple[str, ...], workers: int | None, options: Options) -> None:
    """See that what is asked for is something that servers can do, before any work."""
    if servers:
        options.check_server()
    elif workers is not None:
        raise OptionError("--workers are scans that a --server is asked about at a time.")
    if servers and (workers or 0) > _MOST_ASKED:
        raise OptionError(f"--workers: servers are asked about {_MOST_ASKED} scans at a time.")
    if len({url.rstrip("/") for url in servers}) < len(servers):
        raise OptionError("--server: the same server is named twice.")


def _remotes(
    servers: tuple[str, ...], options: Options, count: int, stack: contextlib.ExitStack
) -> list[RemoteModels]:
    """Models of the servers, once for each scan that is asked about at a time."""
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.client.pool import ServerPool
    from tf_covid.client.remote import RemoteModels
    from tf_covid.client.transport import AskedServer, connect

    connected = [connect(url, os.environ.get("TFCOVID_TOKEN")) for url in servers]
    for each in connected:
        stack.callback(each.close)
    asked: AskedServer = connected[0]
    if len(connected) > 1:
        pool = ServerPool(connected, options.models, console.note)
        stack.callback(pool.close)
        asked = pool
    return [RemoteModels(asked, options.models, console.note) for _ in range(count)]


@click.command()
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT..."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line instead of text.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that read scans.",
)
@guarded
def check(inputs: tuple[Path, ...], as_json: bool, workers: int) -> bool:
    """Read scans and judge them without any network: a line a case, with status and quality flags.

    INPUT is as for infer. Exits with 1 if any case was refused.
    """
    import json

    from tf_covid.scan.reader import Reader

    with Reader() as reader:
        from tf_covid import console
        from tf_covid.cohort.cases import cases_of
        from tf_covid.cohort.check import check_cases

        cases, refused = list(cases_of(inputs, reader.find)), 0
        answers = check_cases(cases, workers, reader)
        for _, checked in zip(console.progress(cases, "check", "name"), answers, strict=True):
            refused += checked.status == "refused"
            click.echo(json.dumps(checked.as_dict()) if as_json else checked.line())
    return not refused


@click.command()
@click.option(
    "--cases",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of patients.",
)
@click.option("--out", required=True, type=FOLDER, help="Folder of the cohort.")
@click.option(
    "--format", "kind", type=click.Choice(["dicom", "nifti"]), default="dicom", show_default=True
)
@click.option(
    "--size", default=512, show_default=True, type=click.IntRange(64, 1024), help="Pixels a side."
)
@click.option(
    "--slices",
    type=click.IntRange(16, 1000),
    help="Slices of each scan; drawn for each if not given.",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option(
    "--per-class",
    type=(click.IntRange(0),) * 5,
    metavar="N N N N N",
    help="Patients of each severity class, instead of --cases.",
)
@guarded
def phantom(
    cases: int,
    out: Path,
    kind: str,
    size: int,
    slices: int | None,
    seed: int,
    per_class: tuple[int, ...] | None,
) -> bool:
    """Make a synthetic cohort with its truth: scans, masks of lungs, lobes, lesions.

    Manifest.csv.
    """
    from tf_covid import console
    from tf_covid.phantom.cohort import write_cohort

    cases = sum(per_class) if per_class else cases
    path = write_cohort(
        out,
        cases,
        seed=seed,
        size=size,
        slices=slices,
        format=kind,
        progress=functools.partial(console.progress, label="phantom"),
        per_class=per_class,
    )
    click.echo(path)
    return True
