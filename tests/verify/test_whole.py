"""As a user does it, with a model that ships: export, serve, ask, verify."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest

from tf_covid.phantom.cohort import write_cohort
from tf_covid.weights import catalog

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
TFCOVID = [sys.executable, "-m", "tf_covid.cli"]
TOKEN = "a-token-for-tests"


def tfcovid(*arguments, **environment):
    command = [*TFCOVID, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of the exports of `severity-ltc`, the smaller one."""
    folder = tmp_path_factory.mktemp("models")
    done = tfcovid("export", "severity-ltc", "--out", folder / "severity-ltc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(folder / "severity-ltc" / "1"),
        str(folder / "severity-ltc-clip" / "1"),
    ]
    return folder


@pytest.fixture(scope="module")
def server(models):
    """URLs by protocol of `tfcovid serve`, which must end well when it is told to."""
    command = [*TFCOVID, "serve", "--models", str(models), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TFCOVID_TOKEN": TOKEN}
    ) as process:
        found = {}
        for line in process.stderr:
            if match := re.match(r"(REST|gRPC)\s+(\S+)", line):
                found[match[1]] = match[2]
            if len(found) == 2:
                break
        urls = {"REST": found["REST"], "gRPC": f"grpc://{found['gRPC']}"}
        until = time.monotonic() + 300
        headers = {"Authorization": f"Bearer {TOKEN}"}
        while httpx.get(f"{urls['REST']}/readyz", headers=headers).status_code != 200:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.5)
        yield urls
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return write_cohort(
        tmp_path_factory.mktemp("patients"), 2, seed=11, size=160, slices=48, format="dicom"
    ).parent


def answers(folder):
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("*/result.json"))
    }


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_infer_by_a_server_writes_what_infer_writes(server, patients, protocol, tmp_path):
    arguments = ["infer", patients / "manifest.csv", "--model", "severity-ltc", "--out"]
    here = tfcovid(*arguments, tmp_path / "here")
    there = tfcovid(
        *arguments, tmp_path / "there", "--server", server[protocol], TFCOVID_TOKEN=TOKEN
    )
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    left, right = answers(tmp_path / "here"), answers(tmp_path / "there")
    assert left.keys() == right.keys()
    assert len(left) == 2
    assert len({one["severity"]["ct_score"] for one in left.values()}) == 2
    for case, one in left.items():
        other = right[case]
        assert one["severity"]["class"] == other["severity"]["class"]
        np.testing.assert_allclose(
            one["severity"]["probabilities"], other["severity"]["probabilities"], atol=1e-4
        )
        assert one["models"][0]["sha256"] == other["models"][0]["sha256"]
        assert one["quality_flags"] == other["quality_flags"]
        for name in ("lungs.nii.gz", "attention.nii.gz"):
            images = [nibabel.load(tmp_path / side / case / name) for side in ("here", "there")]
            np.testing.assert_array_equal(images[0].affine, images[1].affine)
            np.testing.assert_allclose(images[0].get_fdata(), images[1].get_fdata(), atol=0.01)
        assert (tmp_path / "there" / case / "report.html").is_file()
    # The same weights asked about the same scan: the answer stays, whoever gave it.
    again = tfcovid(
        *arguments, tmp_path / "here", "--server", server[protocol], TFCOVID_TOKEN=TOKEN
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("(kept)") == 2, again.stdout + again.stderr


def test_a_zip_of_dicom_gets_its_result_and_files(server, patients, tmp_path):
    folder = next(patients.glob("*/dicom"))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    with httpx.Client(
        base_url=server["REST"], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300
    ) as http:
        answer = http.post(
            "/v1/scans?model=severity-ltc", content=(tmp_path / "scan.zip").read_bytes()
        )
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["status"] == "pass"
        assert result["severity"]["class"] in range(5)
        assert set(result["files"]) == {
            "report.html",
            "montage.png",
            "lungs.nii.gz",
            "lesions.nii.gz",
            "lobes.nii.gz",
            "attention.nii.gz",
        }
        page = http.get(result["files"]["report.html"])
        assert page.status_code == 200
        assert "not a medical device" in page.text
        assert http.delete(result["files"]["report.html"].rsplit("/", 1)[0]).status_code in (
            200,
            204,
        )
        assert http.get(result["files"]["report.html"]).status_code == 404


@pytest.mark.parametrize(
    ("example", "protocol"), [("ask_rest.py", "REST"), ("ask_grpc.py", "gRPC")]
)
def test_the_examples_say_what_infer_says(server, patients, example, protocol, tmp_path):
    scan = next(patients.glob("*/dicom"))
    here = tfcovid(
        "infer", scan, "--model", "severity-ltc", "--attention", "none", "--out", tmp_path
    )
    assert here.returncode == 0, here.stderr
    (result,) = answers(tmp_path).values()
    address = server[protocol].removeprefix("grpc://")
    command = [sys.executable, str(EXAMPLES / example), str(scan), address, "severity-ltc"]
    environment = {**os.environ, "TFCOVID_TOKEN": TOKEN, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = dict(
        line.split(" ", 1) for line in done.stdout.replace("CT score", "score").splitlines()
    )
    np.testing.assert_allclose(
        json.loads(said["probabilities"]), result["severity"]["probabilities"], atol=2e-4
    )
    assert float(said["score"]) == pytest.approx(result["severity"]["ct_score"], abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "http://127.0.0.1:9"], "does not answer"),
        (["--server", "nowhere"], "no address of a server"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(patients, tmp_path, arguments, message):
    done = tfcovid("infer", patients / "manifest.csv", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "more", [["--lungs", __file__], ["--precision", "bfloat16"], ["--attention", "layercam"]]
)
def test_options_that_need_the_models_here_are_wrong_usage(tmp_path, more):
    done = tfcovid(
        "infer", tmp_path, "--out", tmp_path / "out", "--server", "http://127.0.0.1:9", *more
    )
    assert done.returncode == 2, done.stderr


@pytest.mark.parametrize(
    "model", sorted(name for name in catalog.shipped() if name.startswith("severity"))
)
def test_every_shipped_model_is_verified(model, models, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    place = models / model
    if not place.exists():
        place = tmp_path / model
        assert tfcovid("export", model, "--out", place).returncode == 0
    done = tfcovid("verify", model, place)
    assert done.returncode == 0, done.stdout + done.stderr
    ways = {line.split()[0] for line in done.stdout.splitlines()}
    assert ways == {"NIfTI", "SavedModel", "clip", "OpenVINO", "REST", "gRPC"}
    assert "not checked" not in done.stdout
