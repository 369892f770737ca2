"""The command line: parses, calls one function, prints. No logic, and no TensorFlow before it is needed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tf_covid import __version__

# TensorFlow's start-up chatter is no message of ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# NumPy's products here are small: on a busy machine the threads of its BLAS wait for each other,
# many times over.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_FOLDER = click.Path(path_type=Path, file_okay=False)


def _guarded(command: Callable[..., bool]) -> Callable[..., None]:
    """Turn errors into one line and exit 1; add `--debug`, which shows the traceback. True from a command is exit 0."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        from tf_covid import console

        try:
            done = command(*args, **kwargs)
        except click.ClickException:
            raise
        except KeyboardInterrupt:
            console.error("interrupted; finished cases are kept")
            raise SystemExit(130) from None
        except Exception as failure:  # the outermost layer: whatever it is, one line and exit 1
            if debug:
                raise
            text = str(failure).strip() or "no further text"
            console.error(
                text
                if _ours(failure)
                else f"{type(failure).__name__}: {text} (--debug shows where)"
            )
            raise SystemExit(1) from None
        raise SystemExit(0 if done else 1)

    return run


def _labels(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Labels between commas, as numbers."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", word, re.ASCII) for word in words):
        raise click.BadParameter(
            f"{text!r} is no list of whole numbers above 0, such as 10,11,12,13,14."
        )
    return tuple(dict.fromkeys(map(int, words)))


def _ours(failure: Exception) -> bool:
    from tf_covid.errors import TfCovidError

    return isinstance(failure, TfCovidError)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tfcovid")
def main() -> None:
    """Severity of COVID-19 from a chest CT, with the evidence. Research software, not a medical device."""


@main.command()
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT..."
)
@click.option(
    "--out",
    required=True,
    type=_FOLDER,
    help="Folder of the answers: OUT/<case>/ and OUT/summary.csv.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("severity-i3d",),
    show_default=True,
    metavar="NAME|FILE",
    help="Shipped name or .keras file; several of one task: the mean of their probabilities.",
)
@click.option(
    "--lungs",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Your own lung mask (NIfTI, NRRD, MHA), 0 outside and one value inside.",
)
@click.option(
    "--lungs-labels",
    callback=_labels,
    metavar="N,N",
    help="The labels of --lungs that are lung, e.g. 10,11,12,13,14 of TotalSegmentator.",
)
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
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
@click.option(
    "--one-case", is_flag=True, hidden=True, help="Answer nothing unless the input is one case."
)
@click.option(
    "--server",
    metavar="URL",
    help=(
        "Let a server answer, ours or TF Serving: http://HOST:8501 or grpc://HOST:8500. --model is"
        " its name there; a token is read from the variable TFCOVID_TOKEN."
    ),
)
@_guarded
def infer(
    inputs: tuple[Path, ...],
    out: Path,
    models: tuple[str, ...],
    lungs: Path | None,
    lungs_labels: tuple[int, ...],
    precision: str,
    attention: str,
    attention_target: str,
    overwrite: bool,
    keep_identifiers: bool,
    one_case: bool,
    server: str | None,
) -> bool:
    """Answer chest CTs: severity class, CT score, lungs, attention map, report.

    INPUT is a DICOM folder, a .zip, .tar or .tar.gz of one, NIfTI, NRRD, MetaImage, a folder of
    those, or a manifest .csv. Several patients, studies or volume files are several cases. Exits
    with 1 if any case was refused; the rest is done.
    """
    from tf_covid.scan.reader import Reader

    with Reader() as reader:
        from tf_covid import console
        from tf_covid.cohort.cases import cases_of
        from tf_covid.infer import Options, Run, Summary
        from tf_covid.scan.cases import only_case

        cases = list(cases_of(inputs, reader.find))
        if one_case:
            single = only_case(cases)
            if single is None:
                raise click.ClickException(
                    f"several_cases: the upload holds {len(cases)} cases; send each for itself"
                )
            cases = [single]
        if lungs is not None and len(cases) != 1:
            raise click.UsageError(
                f"--lungs is the mask of one scan, but the input holds {len(cases)} cases."
            )
        if lungs_labels and lungs is None:
            raise click.UsageError("--lungs-labels are labels of the mask that --lungs names.")
        options = Options(
            models, precision, attention, attention_target, lungs, keep_identifiers, lungs_labels
        )
        remote = None
        if server is not None:
            if lungs is not None or precision != "float32":
                raise click.UsageError(
                    "--lungs and --precision need the models in this process, not a --server."
                )
            if (attention, attention_target) not in (("none", "severity"), ("gradcam", "severity")):
                raise click.UsageError(
                    "A --server explains by gradcam what raises severity, or nothing (none)."
                )
            console.import_tensorflow()
            from tf_covid.client.remote import RemoteModels
            from tf_covid.client.transport import connect

            remote = RemoteModels(
                connect(server, os.environ.get("TFCOVID_TOKEN")), models, console.note
            )
        run = Run(
            out,
            options,
            overwrite=overwrite,
            before_models=console.import_tensorflow,
            remote=remote,
            reader=reader,
        )
        summary, problems = Summary(out), 0
        for case in console.progress(cases, "infer", "name"):
            outcome = run.answer(case)
            summary.add(outcome)
            if outcome.problem:
                problems += 1
                console.error(f"{outcome.case}: {outcome.problem}")
            else:
                click.echo(outcome.line())
        summary.write()
    return problems == 0


@main.command()
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
@_guarded
def check(inputs: tuple[Path, ...], as_json: bool, workers: int) -> bool:
    """Read scans and judge them, without any network: a line a case with its status and quality flags.

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


@main.command()
@click.option(
    "--cases",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of patients.",
)
@click.option("--out", required=True, type=_FOLDER, help="Folder of the cohort.")
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
@_guarded
def phantom(
    cases: int,
    out: Path,
    kind: str,
    size: int,
    slices: int | None,
    seed: int,
    per_class: tuple[int, ...] | None,
) -> bool:
    """Make a synthetic cohort with its truth: scans, lung, lobe and lesion masks, and manifest.csv."""
    from tf_covid import console
    from tf_covid.phantom.cohort import write_cohort

    def bar(numbers: Any) -> Any:
        return console.progress(numbers, "phantom")

    cases = sum(per_class) if per_class else cases
    path = write_cohort(
        out,
        cases,
        seed=seed,
        size=size,
        slices=slices,
        format=kind,
        progress=bar,
        per_class=per_class,
    )
    click.echo(path)
    return True


@main.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Choice(["i3d", "ltc", "inception_v1", "unet"]),
    help="The network that it becomes.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The new .keras file.",
)
@click.option(
    "--classes",
    type=click.IntRange(2, 10_000),
    help="Number of classes, if not those of the source.",
)
@click.option("--inflate", is_flag=True, help="FILE is a 2D Inception-v1, the new file an I3D.")
@click.option(
    "--allow-missing-head",
    is_flag=True,
    help="Start a new classifier (5 classes unless told otherwise).",
)
@click.option(
    "--clip",
    type=(int, int, int),
    metavar="D H W",
    help="Clip of the new network (i3d: 64 224 224, ltc: 16 112 112 if not given).",
)
@click.option(
    "--trunk",
    type=click.Choice(["c3d", "ltc"]),
    default="c3d",
    show_default=True,
    help="Of --model ltc: C3D's eight convolutions, or LTC's five, three of which fit.",
)
@click.option(
    "--rgb",
    is_flag=True,
    help="Keep three input channels where one gives the same answer for a CT.",
)
@_guarded
def import_(
    file: Path,
    model: str,
    out: Path,
    classes: int | None,
    inflate: bool,
    allow_missing_head: bool,
    clip: tuple[int, int, int] | None,
    trunk: str,
    rgb: bool,
) -> bool:
    """Make a .keras file of ours from a checkpoint, and print as JSON what became of each tensor.

    FILE is a TensorFlow checkpoint (its prefix or .index), .safetensors, .pt, .pth, .h5,
    .weights.h5 or .keras. Only numbers are read from it; nothing in it is run.
    """
    import json

    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.weights.import_plan import ImportRequest
    from tf_covid.weights.importing import import_weights

    done = import_weights(
        file, ImportRequest(model, classes, inflate, allow_missing_head, clip, trunk, rgb), out
    )
    click.echo(json.dumps(done, indent=1))
    return True


@main.command()
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--task", required=True, type=click.Choice(["severity", "covid", "lungs", "slices"]))
@click.option(
    "--model",
    required=True,
    type=click.Choice(["i3d", "ltc", "unet", "inception_v1"]),
    help="i3d or ltc for severity and covid, unet for lungs, inception_v1 for slices.",
)
@click.option("--out", required=True, type=_FOLDER, help="Folder of the run.")
@click.option(
    "--init",
    default="scratch",
    show_default=True,
    metavar="scratch|NAME|FILE",
    help="Weights to start from: a shipped name, or a .keras file of fit or import.",
)
@click.option(
    "--folds",
    default="4",
    show_default=True,
    metavar="N|FILE",
    help="Number of folds, or the folds.json of an earlier run.",
)
@click.option(
    "--by-site", is_flag=True, help="Leave one site out in each fold, whatever --folds says."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Settings, a TOML file.",
)
@click.option("--resume", is_flag=True, help="Finish the run in --out.")
@click.option(
    "--max-skipped",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Unusable scans allowed.",
)
@click.option(
    "--strategy",
    type=click.Choice(["one", "mirrored"]),
    default="one",
    show_default=True,
    help="Train on one device, or on all GPUs of this machine.",
)
@click.option("--cache", type=_FOLDER, help="Folder of the prepared scans; OUT/cache if not given.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that read scans.",
)
@click.option(
    "--patient-fingerprints",
    is_flag=True,
    help="Keep salted hashes of patients' ids in the model files, beside those of the scans.",
)
@_guarded
def fit(
    manifest: Path,
    task: str,
    model: str,
    out: Path,
    init: str,
    folds: str,
    by_site: bool,
    config: Path | None,
    resume: bool,
    max_skipped: int,
    strategy: str,
    cache: Path | None,
    workers: int,
    patient_fingerprints: bool,
) -> bool:
    """Train a network on a cohort by cross-validation, and measure it on the cases that it had not seen.

    MANIFEST is a .csv with a row a scan. Writes OUT/fold-<k>/model.keras, OUT/study.json and
    OUT/study.html. A run that was killed goes on with --resume and ends with the same weights.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.experiment.fit import fit as run
    from tf_covid.experiment.run_folder import FitRequest
    from tf_covid.training.checkpoint import deterministic
    from tf_covid.training.settings import Settings, read_settings

    deterministic()
    counted = re.fullmatch(r"[0-9]{1,9}", folds) is not None  # else it is a file
    number = int(folds) if counted else 0
    if counted and number < 2:
        raise click.UsageError(
            "--folds needs 2 at least: a fold is tested by the network of the others."
        )
    request = FitRequest(
        manifest,
        task,
        model,
        out,
        read_settings(config, console.note) if config else Settings(),
        init=None if init == "scratch" else init,
        folds=number,
        folds_file=None if number else Path(folds),
        by_site=by_site,
        cache=cache,
        max_skipped=max_skipped,
        mirrored=strategy == "mirrored",
        patient_fingerprints=patient_fingerprints,
    )

    def bar(rows: Any) -> Any:
        return console.progress(rows, "read", "case")

    page = run(
        request,
        resume=resume,
        workers=workers,
        on_message=console.note,
        epoch_progress=console.watch,
        progress=bar,
    )
    click.echo(page)
    return True


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL... MANIFEST")
@click.option("--out", required=True, type=_FOLDER, help="Folder of study.json and study.html.")
@click.option(
    "--max-skipped",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Unusable scans allowed.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that read scans.",
)
@_guarded
def evaluate(models: tuple[str, ...], out: Path, max_skipped: int, workers: int) -> bool:
    """Measure frozen models on a labelled cohort, and say which of its scans they were trained on.

    MODEL is a shipped name or a .keras file; several of one task answer with the mean of their
    probabilities. MANIFEST is a .csv with a row a scan.
    """
    from tf_covid import console

    *names, manifest = models
    if not names:
        raise click.UsageError("Name a model and a manifest.")
    console.import_tensorflow()
    from tf_covid.experiment.evaluate import evaluate as run

    def bar(rows: Any) -> Any:
        return console.progress(rows, "read", "case")

    page = run(
        names,
        Path(manifest),
        out,
        max_skipped=max_skipped,
        workers=workers,
        on_message=console.note,
        progress=bar,
    )
    click.echo(page)
    return True


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_FOLDER, metavar="RUN...")
@click.option(
    "--out",
    default=Path("study"),
    show_default=True,
    type=_FOLDER,
    help="Folder of the comparison.",
)
@_guarded
def study(runs: tuple[Path, ...], out: Path) -> bool:
    """Put finished runs and the paper side by side: tables, figures, differences with their intervals."""
    from tf_covid.study import compare

    compare(runs, out)
    click.echo(out / "comparison.html")
    return True


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--from",
    "kind",
    required=True,
    type=click.Choice(["mosmed", "stoic", "covid-ct-md"]),
    help="The data set whose layout the folder has.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The new .csv."
)
@_guarded
def manifest(folder: Path, kind: str, out: Path) -> bool:
    """Write the manifest of a public data set: MosMedData, STOIC2021 or COVID-CT-MD."""
    from tf_covid.cohort.adapters import adapt

    click.echo(adapt(folder, kind, out))
    return True


@main.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--out", required=True, type=_FOLDER, help="Folder of the model, e.g. saved_models/NAME."
)
@click.option(
    "--version",
    type=click.IntRange(1, 2**31 - 1),
    help="Number of the version; the next one if not given.",
)
@_guarded
def export(model: str, out: Path, version: int | None) -> bool:
    """Write a model as a SavedModel for TF Serving: OUT/VERSION, and OUT-clip/VERSION for prepared clips.

    MODEL is a shipped name or a .keras file. The SavedModel goes from int16 HU to the answer
    and its attention map.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.export.savedmodel import export as run

    done = run(model, out, version)
    click.echo(done.stratifier)
    click.echo(done.clip)
    return True


@main.command()
@click.argument("model", metavar="MODEL")
@click.argument("export", type=_FOLDER, metavar="EXPORT")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help=(
        "A server that has the model: http://HOST:8501 or grpc://HOST:8500, once or more. Without,"
        " one is started."
    ),
)
@click.option(
    "--scan",
    "scans",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="A chest CT, once or more; a synthetic one as DICOM and NIfTI if not given.",
)
@_guarded
def verify(model: str, export: Path, servers: tuple[str, ...], scans: tuple[Path, ...]) -> bool:
    """Prove that a model and its export answer alike: Keras, SavedModel, OpenVINO, and a server by REST and gRPC.

    MODEL is a shipped name or a .keras file, EXPORT the folder that `tfcovid export` wrote. Exits
    with 1 if any value differs by more than 1e-4.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.verify.verify import verify as run

    good = True
    for check in run(model, export, servers, scans, console.note, os.environ.get("TFCOVID_TOKEN")):
        click.echo(check.line())
        good = good and check.holds
    return good


@main.command()
@click.option(
    "--models",
    default=Path("saved_models"),
    show_default=True,
    type=_FOLDER,
    help="Folder of the exports: MODELS/NAME/VERSION.",
)
@click.option(
    "--port",
    default=8501,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Of REST; 0: a free one.",
)
@click.option(
    "--grpc-port", default=8500, show_default=True, type=click.IntRange(0, 65535), help="Of gRPC."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; if others can reach it, TFCOVID_TOKEN must hold a token.",
)
@click.option(
    "--queue",
    default=8,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Requests that may wait.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Requests computed at once.",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0.1, 86_400),
    help="Seconds for a request.",
)
@click.option(
    "--message-mb",
    default=1024.0,
    show_default=True,
    type=click.FloatRange(1, 2047),
    help="Largest request, in MB.",
)
@_guarded
def serve(
    models: Path,
    port: int,
    grpc_port: int,
    host: str,
    queue: int,
    workers: int,
    time_limit_s: float,
    message_mb: float,
) -> bool:
    """Serve exports by TF Serving's REST and gRPC API, and whole scans at /v1/scans, until Ctrl-C.

    For laptops, development and tests; a hospital's server is TF Serving itself (deploy/). Requests
    must carry `Authorization: Bearer TOKEN` where the variable TFCOVID_TOKEN is set.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.server.server import serve as run
    from tf_covid.server.settings import Settings

    settings = Settings(
        models=models,
        port=port,
        grpc_port=grpc_port,
        host=host,
        queue=queue,
        workers=workers,
        time_limit_s=time_limit_s,
        message_mb=message_mb,
        token=os.environ.get("TFCOVID_TOKEN") or None,
    )
    run(settings, console.note)
    return True


@main.command()
@_guarded
def doctor() -> bool:
    """Tell what is installed, which decoders and devices work, and which weights are there."""
    from tf_covid import console
    from tf_covid import doctor as room

    console.import_tensorflow()
    report = room.report()
    click.echo(room.render(report), nl=False)
    return bool(report.ok)


if __name__ == "__main__":
    main()
