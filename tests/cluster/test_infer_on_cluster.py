"""`tfcovid infer --engine ray`: the answers of one process, each once, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

pytest.importorskip("ray", reason="needs the extra [ray]")

from tests.small_scans import assert_near, made_scan
from tf_covid.cli import main
from tf_covid.cluster.connection import ClusterOptions, connected
from tf_covid.cluster.folder_storage import FolderStorage
from tf_covid.errors import ClusterError
from tf_covid.phantom.files import write_nifti_volume


def make_scans(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        scan = made_scan(number)
        write_nifti_volume(scan.hu, scan.affine, folder / f"s{number:03d}.nii.gz")
    broken = (folder / "s000.nii.gz").read_bytes()[:3000]
    (folder / "broken.nii.gz").write_bytes(broken)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scans(tmp_path_factory.mktemp("cluster") / "in", 5)


@pytest.fixture
def models(small_files: Any) -> list[str]:
    options = {"model": "network", "lungs-model": "lungs", "lobes-model": "lobes"}
    return [
        text
        for option, name in options.items()
        for text in (f"--{option}", str(getattr(small_files, name)))
    ]


def started(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tf_covid.cli", "infer", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=cwd,
    )


def infer(*arguments: object, cwd: Path | None = None) -> tuple[int, str]:
    process = started(*arguments, cwd=cwd)
    text, _ = process.communicate(timeout=400)
    assert "Traceback" not in text, text
    return process.returncode, text


def answers(out: Path) -> dict[str, Any]:
    results = {}
    for path in sorted(out.glob("*/result.json")):
        values = json.loads(path.read_text("utf-8"))
        for name in ("timings_s", "answered_at"):
            values.pop(name, None)
        results[path.parent.name] = values
    return results


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def workers(doing: str = "Worker.") -> list[psutil.Process]:
    """Processes of Ray that are workers of ours."""
    results = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"ray::{doing}" in " ".join(one.cmdline()):
                results.append(one)
    return results


def test_the_answers_of_one_process(scans, models, tmp_path):
    alone, out, url = (tmp_path / name for name in ("alone", "out", "url"))
    assert infer(scans, "--out", alone, *models)[0] == 1
    ray = ["--engine", "ray", "--workers", 2, *models]
    code, text = infer(scans, "--out", out, *ray)
    assert code == 1, text
    assert text.count("report.html") == 5
    assert "in-broken: truncated_file" in text
    assert_near(answers(out), answers(alone))
    names = [row["case"] for row in rows(out)]
    assert names == [row["case"] for row in rows(alone)]
    assert not list(out.glob(".run-*"))

    # A second run does what is new, what has changed, and what had no answer.
    (scans / "s001.nii.gz").touch()
    scan = made_scan(77)
    write_nifti_volume(scan.hu, scan.affine, scans / "s007.nii.gz")
    code, text = infer(scans, "--out", out, *ray)
    assert code == 1, text
    assert "4 of 7 cases were done before" in text
    assert "in-s001: " in text
    assert "(kept)" in text  # the bytes are those of before
    assert text.count("report.html") == 2
    assert len(rows(out)) == 7

    # Into an object store's place, without a broken one.
    (scans / "broken.nii.gz").unlink()
    code, text = infer(scans, "--out", f"file://{url}", *ray)
    assert code == 0, text
    assert f"file://{url}/in-s000/report.html" in text
    assert_near(
        {name: answers(url)[name] for name in answers(url)},
        {name: value for name, value in answers(out).items() if name != "in-broken"},
    )
    assert (url / "in-s000" / "report.html").is_file()
    assert {row["case"] for row in rows(url)} == set(answers(url))
    code, text = infer(scans, "--out", f"file://{url}", *ray)
    assert code == 0, text
    assert "6 of 6 cases were done before" in text
    assert "report.html" not in text


@pytest.mark.slow
def test_an_answer_that_a_url_does_not_take_is_one_case_without(scans, models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "in-s000").write_text("a file, where a folder is to be")
    code, text = infer(scans, "--out", f"file://{out}", "--engine", "ray", "--workers", 1, *models)
    assert code == 1, text
    assert f"in-s000: not_written: file://{out}: cannot be used" in text
    assert text.count("report.html") == len(list(scans.glob("s*"))) - 1
    (out / "in-s000").unlink()
    code, text = infer(scans, "--out", f"file://{out}", "--engine", "ray", "--workers", 1, *models)
    assert "in-s000/report.html" in text
    assert text.count("report.html") == 1


@pytest.mark.slow
def test_another_question_under_the_same_name_is_refused(scans, models, small_files, tmp_path):
    out = tmp_path / "out"
    one = ["--engine", "ray", "--workers", 1]
    path = scans / "s000.nii.gz"
    assert infer(path, "--out", out, *one, *models)[0] == 0
    other = [str(small_files.other) if part.endswith("network.keras") else part for part in models]
    before = answers(out)
    code, text = infer(path, "--out", out, *one, *other)
    assert code == 1
    assert "name_taken" in text
    assert answers(out) == before
    code, text = infer(path, "--out", out, *one, *other, "--overwrite")
    assert code == 0, text
    assert answers(out) != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "auto"], "are of --engine ray"),
        (["--worker-cpus", "2"], "are of --engine ray"),
        (["--workers", "2"], "--workers are scans that a --server"),
        (["--out", "s3://bucket/x"], "a URL needs --engine ray"),
        (["--engine", "ray", "--server", "http://127.0.0.1:1"], "one of both"),
        (["--engine", "ray", "--address", "nowhere"], "ray_address: nowhere is no address"),
        (["--engine", "ray", "--address", "127.0.0.1:x"], "ray_address"),
        (["--engine", "ray", "--address", "127.0.0.1:99999"], "ray_"),
        (["--engine", "ray", "--out", "nothing://bucket/x"], "out_url: nothing://bucket/x"),
        (["--engine", "ray", "--model", "no-such-model"], "no-such-model"),
        (["--engine", "ray", "--worker-gpus", "99"], "Invalid value"),
        (["--server", "http://127.0.0.1:1", "--workers", "65"], "about 64 scans at a time"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(scans, tmp_path, arguments, message):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["infer", str(scans), *out, *arguments])
    assert done.exit_code != 0
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_nobody_is_at_is_named(scans, models, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, text = infer(
            scans, "--out", tmp_path / "x", *models, "--engine", "ray", "--address", address
        )
    assert code == 1
    assert f"error: ray_unreachable: {address} does not answer (Connection refused)" in text


def test_what_ray_itself_cannot_do_is_one_line(monkeypatch):
    import ray

    def refused(**_: Any) -> None:
        raise RuntimeError("Version mismatch:\n the cluster has Ray 1.0")

    monkeypatch.setattr(ray, "init", refused)
    with (
        pytest.raises(ClusterError, match=r"^ray_failed: auto: Version mismatch: the cluster has"),
        connected(ClusterOptions("auto")),
    ):
        pass


def test_without_the_extra_it_says_so(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["infer", str(scans), "--out", out, "--engine", "ray"])
    assert done.exit_code == 1
    assert 'ray is not installed; pip install -e ".[ray]"' in done.stderr


def test_a_folder_that_another_run_holds_is_left_alone(scans, models, tmp_path):
    with FolderStorage(str(tmp_path / "out")).held():
        code, text = infer(scans, "--out", tmp_path / "out", *models, "--engine", "ray")
    assert code == 1
    assert "run_runs" in text
    assert not list((tmp_path / "out").glob("*/result.json"))


@pytest.mark.slow
def test_models_that_cannot_be_loaded_end_the_run_at_once(scans, models, tmp_path):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK\x03\x04 no model")
    named = [str(broken) if part.endswith("network.keras") else part for part in models]
    code, text = infer(scans, "--out", tmp_path / "out", *named, "--engine", "ray")
    assert code == 1
    assert "broken.keras" in text
    assert not list((tmp_path / "out").glob("*/result.json"))


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does no work, and two nodes of a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_two_hundred_scans_a_node_and_a_worker_that_die(cluster, models, tmp_path):
    scans, out = make_scans(tmp_path / "in", 200), tmp_path / "out"
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    last = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    assert last
    run = started(
        scans,
        "--out",
        out,
        *models,
        "--engine",
        "ray",
        "--address",
        cluster.address,
        "--workers",
        3,
    )
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(run.stdout or ()), daemon=True)
    reading.start()

    def answered() -> int:
        return sum("report.html" in line for line in lines)

    def wait_for(count: int) -> None:
        until = time.monotonic() + 300
        while answered() < count:
            assert run.poll() is None, "".join(lines)
            assert time.monotonic() < until, "".join(lines)
            time.sleep(0.05)

    wait_for(40)
    cluster.remove_node(lost, allow_graceful=False)
    wait_for(90)
    workers("Worker.answer")[0].send_signal(signal.SIGKILL)
    assert run.wait(timeout=500) == 1
    reading.join(30)
    text = "".join(lines)
    assert "Traceback" not in text, text
    assert text.count("report.html") == 200
    assert text.count("in-broken: truncated_file") == 1
    assert "it is tried again" in text
    assert len(answers(out)) == 201
    table = Counter(row["case"] for row in rows(out))
    assert len(table) == 201
    assert set(table.values()) == {1}
    done = [json.loads(line) for line in (out / "done.jsonl").read_text("utf-8").splitlines()]
    assert Counter(row["case"] for row in done) == table
    assert any(row["tries"] > 1 for row in done)
    assert not [path for path in out.iterdir() if path.name.endswith((".partial", ".old"))]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(scans, models, tmp_path):
    scans, out = make_scans(tmp_path / "in", 30), tmp_path / "out"
    command = [scans, "--out", out, *models, "--engine", "ray", "--workers", 2]
    run = started(*command)
    until = time.monotonic() + 200
    while len(list(out.glob("*/result.json"))) < 8:
        assert time.monotonic() < until
        time.sleep(0.1)
    run.kill()
    run.communicate()
    there = {path.parent.name: path.stat().st_ino for path in out.glob("*/result.json")}
    until = time.monotonic() + 60
    while workers():
        assert time.monotonic() < until  # Ray ends what has lost its driver
        time.sleep(0.5)
    code, text = infer(*command)
    assert code == 1, text
    assert len(answers(out)) == 31
    assert len(rows(out)) == 31
    now = {path.parent.name: path.stat().st_ino for path in out.glob("*/result.json")}
    answered = {name: number for name, number in there.items() if name != "in-broken"}
    assert {name: now[name] for name in answered} == answered


@pytest.mark.slow
def test_a_node_with_another_version_answers_nothing(cluster, models, scans, tmp_path):
    other = tmp_path / "other" / "tf_covid-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: tf-covid\nVersion: 99.0\n")
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other.parent)})
    cluster.wait_for_nodes()
    code, text = infer(
        scans,
        "--out",
        tmp_path / "out",
        *models,
        "--engine",
        "ray",
        "--address",
        cluster.address,
        cwd=tmp_path,  # Ray adds it to the workers' paths: the checkout would hide the other version
    )
    assert code == 1
    assert "no_worker: node_differs: " in text
    assert "tf-covid 99.0" in text
    assert not list((tmp_path / "out").glob("*/result.json"))
