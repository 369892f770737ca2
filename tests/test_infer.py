"""`tfcovid infer` and friends on a synthetic patient, as a user meets them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

import tf_covid
from tf_covid.cli import main
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom, write_nifti_volume
from tf_covid.scan import lung_flags

pytestmark = pytest.mark.usefixtures("loaded_once")

SEED = 5  # class 0 … 4 follows from severity=


@pytest.fixture(scope="module")
def chest():
    return draw_chest(SEED, (48, 128, 128), severity=3)


@pytest.fixture(scope="module")
def patient(chest, tmp_path_factory):
    """One synthetic patient as DICOM, NIfTI and NRRD."""
    folder = tmp_path_factory.mktemp("patient")
    write_dicom(chest.hu, chest.affine, folder / "ward", seed=SEED)
    write_nifti_volume(chest.hu, chest.affine, folder / "volume.nii.gz")
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["infer", *map(str, arguments)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def answer(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def answered(patient, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = run(patient / "ward", patient / "volume.nii.gz", "--out", out)
    return out, result


def test_every_file_of_the_contract_is_there(answered):
    out, _ = answered
    for case in ("ward", "volume"):
        names = {path.name for path in (out / case).iterdir()}
        assert names == {
            "result.json",
            "lungs.nii.gz",
            "lesions.nii.gz",
            "lobes.nii.gz",
            "attention.nii.gz",
            "montage.png",
            "report.html",
        }


def test_what_it_says_is_printed_and_summed_up(answered):
    out, result = answered
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["case"] for row in rows] == ["ward", "volume"]
    for row in rows:
        values = answer(out / row["case"])
        assert row["status"] == "pass"
        assert int(row["class"]) == values["severity"]["class"]
        assert sum(values["severity"]["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert f"{row['case']}: class {row['class']} ({row['label']})" in result.stdout
        assert set(values["timings_s"]) == {
            "read",
            "lungs",
            "classify",
            "attention",
            "write",
            "total",
        }


def test_dicom_and_nifti_of_one_patient_answer_alike(answered):
    out, _ = answered
    one, two = answer(out / "ward"), answer(out / "volume")
    assert one["severity"]["class"] == two["severity"]["class"]
    np.testing.assert_allclose(
        one["severity"]["probabilities"], two["severity"]["probabilities"], atol=1e-3
    )
    assert one["lungs"]["volume_ml"] == pytest.approx(two["lungs"]["volume_ml"], rel=1e-3)


def test_the_lungs_are_the_phantoms_and_on_its_grid(answered, chest, patient):
    out, _ = answered
    source, lungs = (
        nibabel.load(path) for path in (patient / "volume.nii.gz", out / "volume" / "lungs.nii.gz")
    )
    assert lungs.shape == source.shape
    np.testing.assert_allclose(lungs.affine, source.affine, atol=1e-4)
    truth = tf_covid.read(patient / "volume.nii.gz").source.from_canonical(chest.lungs)
    found = np.asarray(lungs.dataobj)
    for label in (1, 2):
        dice = (
            2
            * ((found == label) & (truth == label)).sum()
            / ((found == label).sum() + (truth == label).sum())
        )
        assert dice > 0.9, label


def test_attention_is_on_the_grid_and_only_in_kept_slices(answered):
    out, _ = answered
    values = answer(out / "volume")
    attention = nibabel.load(out / "volume" / "attention.nii.gz")
    volume = np.asarray(attention.dataobj)
    assert volume.min() == 0
    assert volume.max() == pytest.approx(1, abs=1e-6)
    assert attention.get_data_dtype() == np.uint8
    assert len(values["attention"]["per_slice"]) == values["series"]["slices"]
    assert np.count_nonzero(values["attention"]["per_slice"]) <= values["lungs"]["slices_kept"]


def test_no_identifier_leaves_without_being_asked_for(patient, answered, tmp_path):
    out, _ = answered
    secrets = [
        value for value in tf_covid.read(patient / "ward").identifiers.values() if len(value) > 2
    ]
    assert len(secrets) >= 3
    texts = [
        path.read_text()
        for path in [*out.rglob("*.json"), *out.rglob("*.html"), out / "summary.csv"]
    ]
    # Any three letters stand somewhere in a picture's base64.
    texts = [re.sub(r"base64,[A-Za-z0-9+/=]+", "", text) for text in texts]
    assert not [secret for secret in secrets for text in texts if secret in text]
    run(patient / "ward", "--out", tmp_path / "kept", "--keep-identifiers", "--attention", "none")
    assert answer(tmp_path / "kept" / "ward")["series"]["uid"] in secrets


def test_a_finished_case_is_kept_and_another_question_needs_overwrite(patient, answered, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(answered[0], out)
    before = (out / "volume" / "result.json").read_bytes()
    assert "(kept)" in run(patient / "volume.nii.gz", "--out", out).stdout
    other = run(patient / "volume.nii.gz", "--out", out, "--attention", "none", code=1)
    assert "name_taken" in other.stderr
    # The table says what is in the folders, those of earlier runs included.
    assert [row["status"] for row in csv.DictReader((out / "summary.csv").open())] == [
        "pass",
        "pass",
    ]
    assert (out / "volume" / "result.json").read_bytes() == before
    # Another patient under the same name must never get this one's answer.
    strange = tmp_path / "b" / "volume.nii.gz"
    strange.parent.mkdir()
    other_chest = draw_chest(SEED + 1, (40, 96, 96), severity=0)
    write_nifti_volume(other_chest.hu, other_chest.affine, strange)
    assert "name_taken" in run(strange, "--out", out, code=1).stderr
    assert (out / "volume" / "result.json").read_bytes() == before
    run(strange, "--out", out, "--overwrite", "--attention", "none")
    assert answer(out / "volume")["series"]["shape"] == [40, 96, 96]
    assert not (out / "volume" / "attention.nii.gz").exists()


@pytest.mark.parametrize("method", ["gradcam++", pytest.param("layercam", marks=pytest.mark.slow)])
def test_other_methods_and_the_papers_target(patient, tmp_path, method):
    run(
        patient / "volume.nii.gz",
        "--out",
        tmp_path,
        "--attention",
        method,
        "--attention-target",
        "class",
    )
    looked = answer(tmp_path / "volume")["attention"]
    assert (looked["method"], looked["target"]) == (method, "class")


@pytest.mark.slow
def test_several_models_give_their_mean_and_bfloat16_is_near(patient, answered, tmp_path):
    run(
        patient / "volume.nii.gz",
        "--out",
        tmp_path,
        "--model",
        "severity-i3d",
        "--model",
        "severity-i3d",
        "--precision",
        "bfloat16",
    )
    values, exact = answer(tmp_path / "volume"), answer(answered[0] / "volume")
    assert len(values["models"]) == 2
    mean = np.mean([model["probabilities"] for model in values["models"]], axis=0)
    np.testing.assert_allclose(values["severity"]["probabilities"], mean, atol=1e-6)
    assert values["severity"]["ct_score"] == pytest.approx(exact["severity"]["ct_score"], abs=1.5)


def test_a_users_own_mask_is_used(patient, chest, answered, tmp_path):
    one_lung = (chest.lungs == 1).astype(np.uint8)
    write_nifti_volume(one_lung, chest.affine, tmp_path / "mask.nii.gz")
    result = run(
        patient / "volume.nii.gz", "--out", tmp_path / "out", "--lungs", tmp_path / "mask.nii.gz"
    )
    values = answer(tmp_path / "out" / "volume")
    assert "class" in result.stdout
    assert "one_lung" in [flag["code"] for flag in values["quality_flags"]]
    assert values["lungs"]["volume_ml"] == pytest.approx(
        one_lung.sum() * np.prod(chest.spacing_mm) / 1000, rel=0.06
    )
    two = CliRunner().invoke(
        main,
        [
            "infer",
            str(patient / "volume.nii.gz"),
            str(patient / "ward"),
            "--out",
            str(tmp_path / "no"),
            "--lungs",
            str(tmp_path / "mask.nii.gz"),
        ],
    )
    assert two.exit_code == 2
    assert "mask of one scan" in two.output


def test_a_manifest_gives_its_names(patient, tmp_path):
    manifest = tmp_path / "cohort.csv"
    manifest.write_text(f"case,patient,path\nfirst,p1,{patient / 'volume.nii.gz'}\n")
    run(manifest, "--out", tmp_path / "out", "--attention", "none")
    assert (tmp_path / "out" / "first" / "report.html").exists()
    manifest.write_text("case,patient,path\nfirst,p1,gone.nii.gz\n")
    assert "row 2, path" in run(manifest, "--out", tmp_path / "out", code=1).stderr


def test_a_zip_of_the_folder_answers_too(patient, answered, tmp_path):
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as archive:
        for file in sorted((patient / "ward").rglob("*")):
            archive.write(file, file.relative_to(patient))
    run(tmp_path / "sent.zip", "--out", tmp_path / "out", "--attention", "none")
    exact = answer(answered[0] / "ward")["severity"]["probabilities"]
    np.testing.assert_allclose(
        answer(tmp_path / "out" / "sent")["severity"]["probabilities"], exact, atol=1e-5
    )


def rubbish(folder, chest):
    """Name of a bad input → how to make it, and the code of its flag."""

    def bones(path):
        write_nifti_volume(
            np.where(chest.hu > -300, chest.hu, 20).astype(np.int16), chest.affine, path
        )

    def one_slice(path):
        write_nifti_volume(chest.hu[:1], chest.affine, path)

    def windowed(path):
        scaled = np.clip((chest.hu.astype(np.float32) + 1100) / 1400 * 255, 0, 255).astype(np.int16)
        write_nifti_volume(scaled, chest.affine, path)

    return {
        "empty.nii.gz": (lambda path: path.write_bytes(b""), None),
        "text.nii.gz": (lambda path: path.write_text("hello"), None),
        "gone.nii.gz": (lambda path: None, "not_found"),
        "bones.nii.gz": (bones, None),
        "slice.nii.gz": (one_slice, "single_slice"),
        "windowed.nii.gz": (windowed, "not_hu"),
        "half.zip": (lambda path: path.write_bytes(b"PK\x03\x04rubbish"), None),
    }


def test_rubbish_gets_one_line_each_and_the_rest_is_done(patient, chest, tmp_path):
    bad = rubbish(tmp_path, chest)
    for name, (make, _) in bad.items():
        make(tmp_path / name)
    result = run(
        *(tmp_path / name for name in bad),
        patient / "volume.nii.gz",
        "--out",
        tmp_path / "out",
        "--attention",
        "none",
        code=1,
    )
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(bad)
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "out" / "summary.csv").open())}
    assert rows["volume"]["status"] == "pass"
    assert rows["volume"]["class"] != ""
    for name, (_, code) in bad.items():
        case = name.split(".")[0]
        values = answer(tmp_path / "out" / case)
        assert set(values) == {"case", "status", "quality_flags", "versions"}
        assert values["status"] == "refused"
        assert rows[case]["status"] == "refused"
        assert rows[case]["class"] == ""
        assert code is None or code in rows[case]["quality_flags"].split()


def test_a_refusal_is_tried_again_and_never_in_the_way(patient, tmp_path):
    out, scan = tmp_path / "out", tmp_path / "late.nii.gz"
    assert "not_found" in run(scan, "--out", out, code=1).stderr
    shutil.copy(patient / "volume.nii.gz", scan)
    assert "class" in run(scan, "--out", out, "--attention", "none").stdout


def test_a_case_called_like_the_table_gets_another_folder(patient, tmp_path):
    shutil.copy(patient / "volume.nii.gz", tmp_path / "summary.csv.nii.gz")
    run(tmp_path / "summary.csv.nii.gz", "--out", tmp_path / "out", "--attention", "none")
    assert (tmp_path / "out" / "summary.csv").is_file()
    assert (tmp_path / "out" / "summary.csv-2" / "result.json").is_file()


def test_an_output_folder_that_is_a_file_is_named(patient, tmp_path):
    (tmp_path / "out").touch()
    assert run(patient / "ward", "--out", tmp_path / "out", code=2)


def test_a_scan_without_lungs_is_refused_not_answered_zero(chest, tmp_path):
    abdomen = np.random.default_rng(0).integers(0, 80, chest.hu.shape).astype(np.int16)
    abdomen[:, :20] = abdomen[:, -20:] = -1000
    write_nifti_volume(abdomen, chest.affine, tmp_path / "abdomen.nii.gz")
    result = run(tmp_path / "abdomen.nii.gz", "--out", tmp_path / "out", code=1)
    assert "no_lung" in result.stderr or "few_slices" in result.stderr


def test_errors_of_models_and_usage(patient, tmp_path):
    assert (
        "neither a file nor a shipped model"
        in run(patient / "ward", "--out", tmp_path, "--model", "x", code=1).stderr
    )
    assert (
        "models of one task"
        in run(patient / "ward", "--out", tmp_path, "--model", "lungs-unet", code=1).stderr
    )
    run("--out", tmp_path, code=2)
    run(patient / "ward", code=2)
    run(patient / "ward", "--out", tmp_path, "--precision", "int4", code=2)


def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tf_covid.cli",
        "infer",
        str(tmp_path / "no.csv"),
        "--out",
        str(tmp_path / "o"),
    ]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert plain.stderr.count("\n") == 1
    assert plain.stderr.startswith("error: ")
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_one_call_in_python(patient):
    result = tf_covid.stratify(tf_covid.read(patient / "volume.nii.gz"), attention="none")
    assert result.severity is not None
    assert result.attention is None
    assert result.severity.label in tf_covid.severity.LABELS
    network = tf_covid.load_model("severity-i3d")
    assert network.input_shape[0] is None
    assert set(network.output) == {"logits", "ct_score"}


@pytest.mark.slow
def test_real_scan_in_three_formats_answers_alike(real_ct, tmp_path):
    import SimpleITK

    nifti = tmp_path / "cip.nii.gz"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(real_ct / "cip" / "ct-64.nrrd")), str(nifti))
    out = tmp_path / "out"
    run(real_ct / "cip" / "dicom", real_ct / "cip" / "ct-64.nrrd", nifti, "--out", out)
    values = [answer(out / case) for case in ("dicom", "ct-64", "cip")]
    assert len({one["severity"]["class"] for one in values}) == 1
    for one in values[1:]:
        np.testing.assert_allclose(
            one["severity"]["probabilities"], values[0]["severity"]["probabilities"], atol=1e-3
        )


@pytest.mark.slow
def test_lungs_of_the_real_scan(real_ct, tmp_path):
    import SimpleITK

    run(real_ct / "cip" / "ct-64.nrrd", "--out", tmp_path)
    truth = (
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(real_ct / "cip" / "wholeLung-64.nrrd")))
        > 0
    )
    found = (
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "ct-64" / "lungs.nii.gz")))
        > 0
    )
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) >= 0.96


def test_the_real_lung_base_gets_its_quality_flag(real_ct, tmp_path):
    result = run(real_ct / "totalsegmentator" / "example_ct.nii.gz", "--out", tmp_path, code=1)
    codes = [flag["code"] for flag in answer(tmp_path / "example_ct")["quality_flags"]]
    assert "lungs_cut_off" in codes
    assert "few_slices" in codes or "no_lung" in codes
    assert "Traceback" not in result.output


def test_cut_off_is_measured_where_it_is():
    shares = np.linspace(0.2, 0, 30)
    codes = {flag.code: flag.value for flag in lung_flags(shares, spacing_mm=5.0)}
    assert codes["lungs_cut_off"] == "apex"


def test_package_folder_of_weights_is_small():
    from tf_covid.weights import catalog

    files = catalog.shipped()
    assert {"lungs-unet", "severity-i3d"} <= set(files)
    assert sum(Path(path).stat().st_size for path in files.values()) < 100e6
