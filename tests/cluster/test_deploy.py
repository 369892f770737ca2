"""`deploy/` for a cluster: parsed, and the Slurm script run with a Slurm of one machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra [ray]")

import ray
import yaml

from tests.small_fits import CONFIG, curves_of, fit_command
from tests.small_scans import made_scan
from tf_covid.cli.scans import infer
from tf_covid.cli.training import fit
from tf_covid.phantom.files import write_nifti_volume

DEPLOY = Path(__file__).parents[2] / "deploy"
SLURM = DEPLOY / "infer.sbatch"
FIT = DEPLOY / "fit.sbatch"

#: What Slurm would do, on one machine: a task is a process.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'


#: The same with a task a worker, both on this machine.
SRUN_TASKS = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=1 "$@" & other=$!
SLURM_PROCID=0 "$@"; code=$?
wait $other && exit $code
"""


def options_of(line: str) -> set[str]:
    """Long options in a call of `tfcovid infer`, without those of a variable."""
    return {part for part in shlex.split(line) if part.startswith("--")}


KNOWN_TO_FIT = {option for one in fit.params for option in getattr(one, "opts", [])}
KNOWN = {option for one in infer.params for option in getattr(one, "opts", [])}


@pytest.mark.parametrize(("script", "command"), [(SLURM, "infer"), (FIT, "fit")])
def test_the_slurm_scripts_are_some(script: Path, command: str) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text("utf-8").splitlines()
    asked = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert {option.partition("=")[0] for option in asked} >= {"--nodes", "--cpus-per-task"}
    # Slurm stops reading its options at the first line that is no comment.
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(index < first for index, line in enumerate(lines) if line.startswith("#SBATCH"))
    if command == "infer":
        (call,) = (line for line in lines if line.startswith("tfcovid infer"))
        assert options_of(call) <= KNOWN
    else:
        call = lines[-1].removeprefix("' ")
        assert options_of(call) == {"--out", "--strategy"} <= KNOWN_TO_FIT


@pytest.mark.parametrize("script", [SLURM, FIT])
def test_without_arguments_they_say_how_they_are_called(script: Path) -> None:
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


def test_the_kuberay_file_is_one() -> None:
    job: dict[str, Any] = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert options_of(job["spec"]["entrypoint"]) <= KNOWN
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    seen = []
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"scans": "/scans", "answers": "/answers"}
        assert {one["name"] for one in group["template"]["spec"]["volumes"]} == set(mounted)
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        seen.append(container["image"])
    assert len(set(seen)) == 1
    words = job["spec"]["entrypoint"].split()
    assert words[2].startswith("/scans/")
    assert words[words.index("--out") + 1] == "/answers"
    # The head does no work: it holds what the workers need to go on.
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    workers = [group for group in cluster["workerGroupSpecs"] if group["minReplicas"]]
    cores = int(words[words.index("--worker-cpus") + 1])
    for group in workers:
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["cpu"]) >= cores


def submitted(
    folder: Path, script: Path, *arguments: str, nodes: str, srun: str, **slurm: str
) -> subprocess.CompletedProcess[str]:
    """A script as a Slurm would run it whose nodes, a line each, are all this machine."""
    shims = folder / "bin"
    shims.mkdir(exist_ok=True)
    for name, text in (("scontrol", f"#!/bin/bash\nprintf '{nodes}'\n"), ("srun", srun)):
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    facts = {"SLURM_JOB_NODELIST": "nodes", "SLURM_JOB_ID": str(os.getpid())}
    path = f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=os.environ | facts | {"PATH": path, "SLURM_CPUS_PER_TASK": "1"} | slurm,
    )


@pytest.mark.parametrize("tasks", ["3", "34"])
def test_nodes_with_other_numbers_of_tasks_are_refused(tasks: str, tmp_path: Path) -> None:
    done = submitted(
        tmp_path, FIT, "m.csv", "run", nodes="a\\nb\\n", srun=SRUN_TASKS, SLURM_NTASKS=tasks
    )
    assert done.returncode == 2
    assert "the same number of tasks on each node, 16 at most" in done.stderr


@pytest.mark.slow
def test_the_slurm_script_answers(small_files: Any, tmp_path: Path) -> None:
    node = ray.util.get_node_ip_address()
    scans = tmp_path / "in"
    scans.mkdir()
    for number in range(3):
        scan = made_scan(number)
        write_nifti_volume(scan.hu, scan.affine, scans / f"s{number}.nii.gz")
    names = {"model": "network", "lungs-model": "lungs", "lobes-model": "lobes"}
    options = [
        text
        for option, name in names.items()
        for text in (f"--{option}", str(getattr(small_files, name)))
    ]
    done = submitted(
        tmp_path,
        SLURM,
        str(scans),
        str(tmp_path / "out"),
        *options,
        nodes=f"{node}\\n{node}\\n",
        srun=SRUN,
        WORKER_CPUS="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("report.html") == 3
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 3


@pytest.mark.slow
def test_the_slurm_script_trains(small_cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = fit_command(small_cohort, run, config=CONFIG.replace("epochs = 3", "epochs = 2"))
    asked = [str(small_cohort), str(run), *words[words.index("--task") :]]
    for _ in range(2):  # submitted again it finds all done
        done = submitted(
            tmp_path, FIT, *asked, nodes="127.0.0.1\\n", srun=SRUN_TASKS, SLURM_NTASKS="2"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("study.html") == 2
    assert "fold 1: done" in done.stderr
    assert {len(one["loss"]) for one in curves_of(run)} == {2}
