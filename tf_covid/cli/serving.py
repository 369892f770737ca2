"""Commands of servers and the installation: `export`, `verify`, `serve`, `doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tf_covid.cli.guard import FOLDER, guarded, lung_model_options


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--out", required=True, type=FOLDER, help="Folder of the model, e.g. saved_models/NAME."
)
@click.option(
    "--version",
    type=click.IntRange(1, 2**31 - 1),
    help="Number of the version; the next one if not given.",
)
@lung_model_options
@guarded
def export(
    model: str,
    out: Path,
    version: int | None,
    lungs_model: str | None,
    lobes_model: str | None,
    allow_other_lungs: bool,
) -> bool:
    """Write a model as a SavedModel for TF Serving: OUT/VERSION, and OUT-clip/VERSION for clips.

    MODEL is a shipped name or a .keras file. The SavedModel goes from int16 HU to the
    answer and its attention map; that of OUT-clip only the network.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.export.savedmodel import export as run

    done = run(
        model,
        out,
        version,
        lungs=lungs_model,
        lobes=lobes_model,
        allow_other_lungs=allow_other_lungs,
    )
    click.echo(done.stratifier)
    click.echo(done.clip)
    return True


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("export", type=FOLDER, metavar="EXPORT")
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
@lung_model_options
@guarded
def verify(
    model: str,
    export: Path,
    servers: tuple[str, ...],
    scans: tuple[Path, ...],
    lungs_model: str | None,
    lobes_model: str | None,
    allow_other_lungs: bool,
) -> bool:
    """Prove that a model and its export answer alike, in Keras, SavedModel, OpenVINO and a server.

    The server is asked by REST and gRPC. MODEL is a shipped name or a .keras file, EXPORT the
    folder that `tfcovid export` wrote. Exits with 1 if any value differs by more than 1e-4.
    """
    from tf_covid import console

    console.import_tensorflow()
    from tf_covid.local import LocalModels
    from tf_covid.verify.verify import verify as run

    good = True
    models = LocalModels(
        [model], lungs=lungs_model, lobes=lobes_model, allow_other_lungs=allow_other_lungs
    )
    for check in run(models, export, servers, scans, console.note, os.environ.get("TFCOVID_TOKEN")):
        click.echo(check.line())
        good = good and check.holds
    return good


@click.command()
@click.option(
    "--models",
    default=Path("saved_models"),
    show_default=True,
    type=FOLDER,
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
    "--public-url",
    "public_urls",
    multiple=True,
    metavar="URL",
    help="Where browsers see a proxy in front, https://NAME[:PORT]: pages of it may ask.",
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
@guarded
def serve(
    models: Path,
    port: int,
    grpc_port: int,
    host: str,
    public_urls: tuple[str, ...],
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
    from tf_covid.server.settings import ServerSettings

    settings = ServerSettings(
        models=models,
        port=port,
        grpc_port=grpc_port,
        host=host,
        public_urls=public_urls,
        queue=queue,
        workers=workers,
        time_limit_s=time_limit_s,
        message_mb=message_mb,
        token=os.environ.get("TFCOVID_TOKEN") or None,
    )
    run(settings, console.note)
    return True


@click.command()
@guarded
def doctor() -> bool:
    """Tell what is installed, which decoders and devices work, and which weights are there."""
    from tf_covid import console
    from tf_covid import doctor as room

    console.import_tensorflow()
    report = room.report()
    click.echo(room.render(report), nl=False)
    return bool(report.ok)
