"""Commands of cohorts and training: `manifest`, `import`, `fit`, `evaluate`, `study`."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path

import click

from tf_covid.cli.guard import FOLDER, guarded, lung_model_options


@click.command()
@click.argument("folder", type=FOLDER)
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
@guarded
def manifest(folder: Path, kind: str, out: Path) -> bool:
    """Write the manifest of a public data set: MosMedData, STOIC2021 or COVID-CT-MD."""
    from tf_covid.cohort.adapters import adapt

    click.echo(adapt(folder, kind, out))
    return True


@click.command("import")
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
@guarded
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


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--task", required=True, type=click.Choice(["severity", "covid", "lungs", "lobes", "slices"])
)
@click.option(
    "--model",
    required=True,
    type=click.Choice(["i3d", "ltc", "unet", "unet3d", "inception_v1"]),
    help="i3d or ltc for severity and covid, unet for lungs, unet3d for lobes, inception_v1 for"
    " slices.",
)
@click.option("--out", required=True, type=FOLDER, help="Folder of the run.")
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
    metavar="N|FILE|none",
    help="Number of folds, the folds.json of an earlier run, or none: train on all but the"
    " validation cases.",
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
    type=click.Choice(["one", "mirrored", "multiworker"]),
    default="one",
    show_default=True,
    help="Train on one device, on all GPUs of this machine, or with the workers of TF_CONFIG, on"
    " several machines: docs/scale.md.",
)
@click.option("--cache", type=FOLDER, help="Folder of the prepared scans; OUT/cache if not given.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that read scans, 1 if not given; or draw chests, all cores if not given.",
)
@click.option(
    "--patient-fingerprints",
    is_flag=True,
    help="Keep salted hashes of patients' ids in the model files, beside those of the scans.",
)
@click.option(
    "--lungs-model",
    metavar="NAME|FILE",
    help="2D lung model that a classifier is trained behind; without, the shipped lungs-unet.",
)
@click.option(
    "--lobes-model",
    metavar="NAME|FILE|none",
    help="3D lobe model that gates the lung mask; without, the shipped one, if there is one.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="What trains the folds. ray (an extra): several at a time, on this machine or on the nodes"
    " of a cluster that share --out and --cache.",
)
@click.option(
    "--address",
    metavar="A",
    help="The Ray to ask: auto, HOST:6379 or ray://HOST:10001. RAY_ADDRESS counts if it is not"
    " given; without either, Ray is started on this machine.",
)
@click.option(
    "--worker-cpus",
    type=click.IntRange(1, 1024),
    help="Cores of each fold of ray; all that there are, shared out, if not given.",
)
@click.option(
    "--worker-gpus",
    type=click.FloatRange(0, 64),
    help="GPUs of each fold of ray; 0.5 lets two share one. 1 if not given, where there are any.",
)
@guarded
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
    workers: int | None,
    patient_fingerprints: bool,
    lungs_model: str | None,
    lobes_model: str | None,
    engine: str,
    address: str | None,
    worker_cpus: int | None,
    worker_gpus: float | None,
) -> bool:
    """Train a network on a cohort by cross-validation, and measure it on its test cases.

    MANIFEST is a .csv with a row a scan, or phantom:N for N synthetic chests (--folds none).
    Writes OUT/fold-<k>/model.keras (--folds none: OUT/model.keras), OUT/study.json,
    OUT/study.html and its figures as files (OUT/figures/). A run that was killed goes on with
    --resume and ends with the same weights.
    """
    from tf_covid import console
    from tf_covid.cli.clusters import cluster_options, folds_elsewhere

    cluster = cluster_options(engine, address, None, worker_cpus, worker_gpus)
    if cluster is not None and (folds == "none" or strategy == "multiworker"):
        raise click.UsageError(
            "--engine ray trains folds beside each other, a process each: with --folds none there"
            " is one network, and --strategy multiworker has processes of its own."
        )
    console.import_tensorflow(starts=cluster is None and strategy != "multiworker")
    from tf_covid.experiment.fit import fit as run
    from tf_covid.experiment.run_folder import FitRequest
    from tf_covid.preprocessor import LUNGS
    from tf_covid.training.checkpoint import deterministic
    from tf_covid.training.settings import Settings, read_settings

    deterministic()
    single = folds == "none"
    if single and by_site:
        raise click.UsageError("--by-site makes folds, and --folds none asks for none.")
    counted = re.fullmatch(r"[0-9]{1,9}", folds) is not None  # else it is a file
    count = int(folds) if counted else 0
    if counted and count < 2:
        raise click.UsageError(
            "--folds needs 2 at least: a fold is tested by the network of the others."
            " --folds none trains one network."
        )
    request = FitRequest(
        manifest,
        task,
        model,
        out,
        read_settings(config, console.note) if config else Settings(),
        init=None if init == "scratch" else init,
        folds=count,
        folds_file=None if count or single else Path(folds),
        by_site=by_site,
        cache=cache,
        max_skipped=max_skipped,
        mirrored=strategy == "mirrored",
        patient_fingerprints=patient_fingerprints,
        lungs=lungs_model or LUNGS,
        lobes=lobes_model,
    )

    elsewhere = None
    if cluster is not None:
        request, elsewhere = folds_elsewhere(request, cluster, worker_cpus, worker_gpus)
    group = None
    if strategy == "multiworker":
        from tf_covid.experiment.group import meet_workers
        from tf_covid.training.worker_group import WorkerGroup

        met = meet_workers(request, on_message=console.note)
        with console.start_up_hidden():
            group = WorkerGroup(met)
        request = dataclasses.replace(request, training_workers=group.count)
    page = run(
        request,
        group=group,
        elsewhere=elsewhere,
        resume=resume,
        workers=workers or (1 if request.chests is None else os.cpu_count() or 1),
        on_message=console.note,
        epoch_progress=console.step_progress,
        progress=functools.partial(console.progress, label="read", name="case"),
    )
    click.echo(page)
    return True


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL... MANIFEST")
@click.option(
    "--out", required=True, type=FOLDER, help="Folder of study.json, study.html and figures/."
)
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
@lung_model_options
@guarded
def evaluate(
    models: tuple[str, ...],
    out: Path,
    max_skipped: int,
    workers: int,
    lungs_model: str | None,
    lobes_model: str | None,
    allow_other_lungs: bool,
) -> bool:
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

    page = run(
        names,
        Path(manifest),
        out,
        lungs=lungs_model,
        lobes=lobes_model,
        allow_other_lungs=allow_other_lungs,
        max_skipped=max_skipped,
        workers=workers,
        on_message=console.note,
        progress=functools.partial(console.progress, label="read", name="case"),
    )
    click.echo(page)
    return True


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="RUN...")
@click.option(
    "--out",
    default=Path("study"),
    show_default=True,
    type=FOLDER,
    help="Folder of the comparison.",
)
@guarded
def study(runs: tuple[Path, ...], out: Path) -> bool:
    """Put finished runs and the paper side by side: tables, figures, differences, intervals."""
    from tf_covid.study import compare

    compare(runs, out)
    click.echo(out / "comparison.html")
    return True
