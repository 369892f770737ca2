"""`tfcovid watch`: what it looks at, and what it does with what it sees."""

from __future__ import annotations

from pathlib import Path

import click

from tf_covid.cli.guard import FOLDER, archive_options, dicom_options, guarded, model_option


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--out", required=True, type=FOLDER, help="Folder of the answers and of the journal.")
@click.option(
    "--store",
    metavar="ADDRESS",
    help="Where DICOM objects go: dicomweb:URL or dimse:AET@HOST:PORT.",
)
@model_option
@click.option(
    "--quiet-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 86_400),
    help="A series is complete when so long nothing was added to it.",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(0),
    help="Delete answers and received images so long after the answer; without, never.",
)
@click.option(
    "--study-days",
    type=click.IntRange(1),
    metavar="N",
    help="Of an archive, look at studies of the last N days only, today among them.",
)
@click.option(
    "--called-aet", metavar="AET", help="The AE title that senders must call, if not SOURCE's."
)
@click.option(
    "--allow-aet",
    "allowed_aets",
    multiple=True,
    metavar="AET",
    help="An AE title that may send, once or more; without, all may.",
)
@click.option(
    "--dimse-tls",
    is_flag=True,
    help="DIMSE through TLS: --client-cert is our certificate, --ca-file vouches for the others.",
)
@dicom_options
@archive_options
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    help="Answer /healthz and /metrics on this machine, at this port.",
)
@click.option("--retry-failed", is_flag=True, help="Try what failed again.")
@click.option("--status", is_flag=True, help="Show the journal, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --status: a JSON object a line.")
@guarded
def watch(
    sources: tuple[str, ...],
    out: Path,
    store: str | None,
    models: tuple[str, ...],
    quiet_seconds: float,
    keep_days: float | None,
    study_days: int | None,
    called_aet: str | None,
    allowed_aets: tuple[str, ...],
    dimse_tls: bool,
    dicom: bool,
    dicom_map: bool,
    dicom_pdf: bool,
    dicom_deidentified: bool,
    ca_file: Path | None,
    client_cert: Path | None,
    health_port: int | None,
    retry_failed: bool,
    status: bool,
    as_json: bool,
) -> bool:
    """Answer every new chest CT once, until a signal ends it.

    SOURCE is an archive (dicomweb:URL), an own DICOM node that others send to
    (dimse:AET@ADDRESS:PORT), or a folder. A CT series is answered once it has been quiet; images
    that come later give a second answer. A journal in OUT lets a watch that was killed go on.
    Archives are asked with what the variables TFCOVID_DICOMWEB_USER, _PASSWORD and _TOKEN hold.
    """
    if status:
        from tf_covid.watch.journal import read_rows
        from tf_covid.watch.status import json_lines, text_lines

        for line in (json_lines if as_json else text_lines)(read_rows(out)):
            click.echo(line)
        return True
    if not sources:
        raise click.UsageError("A SOURCE is needed: an archive, a DICOM node, or a folder.")
    from tf_covid.extras import optional_import

    for module in ("highdicom", "httpx", "prometheus_client", "pynetdicom"):
        optional_import(module, "dicom")  # before any work
    from tf_covid import console
    from tf_covid.cli.models import loader
    from tf_covid.dicom_results.options import DicomOptions
    from tf_covid.infer import Options
    from tf_covid.pacs.address import Access
    from tf_covid.watch.start import WatchSettings, run_watch

    objects = DicomOptions.of_flags(
        dicom or store is not None, dicom_map, dicom_pdf, dicom_deidentified
    )
    options = Options(models, dicom=objects)
    settings = WatchSettings(
        out=out,
        sources=sources,
        store=store,
        access=Access.of_environment(ca_file, client_cert),
        quiet_s=quiet_seconds,
        keep_days=keep_days,
        study_days=study_days,
        called_aet=called_aet,
        allowed_aets=allowed_aets,
        dimse_tls=dimse_tls,
        health_port=health_port,
        retry_failed=retry_failed,
    )
    run_watch(settings, options, console.note, loader(options))
    return True
