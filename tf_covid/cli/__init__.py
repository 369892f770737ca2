"""The command line: parses, calls one function, prints.

A command imports what it calls when it runs, so that `--help` loads nothing but click.
"""

from __future__ import annotations

import os

import click

from tf_covid import __version__
from tf_covid.cli.scans import check, infer, phantom
from tf_covid.cli.serving import doctor, export, serve, verify
from tf_covid.cli.training import evaluate, fit, import_, manifest, study
from tf_covid.cli.watching import watch

__all__ = ["infer", "main"]

# TensorFlow's start-up chatter is no message of ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# NumPy's products here are small: on a busy machine the threads of its BLAS wait for each other,
# many times over.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# TensorFlow leaves oneDNN out on older processors (without VNNI), where it is as good: networks
# take half the time with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tfcovid")
def main() -> None:
    """Severity of COVID-19 from a chest CT, with the evidence.

    Research software, not a medical device.
    """


for _command in (infer, check, phantom, manifest, import_, fit, evaluate, study):
    main.add_command(_command)
for _command in (export, verify, serve, watch, doctor):
    main.add_command(_command)
