"""The programs that made the shipped weights still run, on a handful of tiny cases."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from click.testing import CliRunner

from tf_covid.training import augment, cases
from tf_covid.training.lungs import main as train_lungs
from tf_covid.training.severity import main as train_severity
from tf_covid.weights import load


@pytest.mark.slow
def test_both_networks_train_and_write_file_and_card(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cases, "case_shape", lambda seed: (12, 64, 64))
    folder = tmp_path / "cases"
    folder.mkdir()
    for seed in (*range(4), *range(cases.UNSEEN, cases.UNSEEN + 5)):
        cases._draw(folder, seed)
    for module in ("lungs", "severity"):
        monkeypatch.setattr(f"tf_covid.training.{module}.draw_cases", lambda folder, seeds: None)
    common = ["--cases", str(folder), "--train", "4", "--unseen", "5", "--epochs", "2", "--steps", "2", "--batch", "2"]
    runs = {
        "lungs": (train_lungs, ["--side", "32", "--filters", "2"]),
        "severity": (train_severity, ["--clip", "8", "32", "32", "--lungs", str(tmp_path / "lungs" / "model.keras")]),
    }
    caplog.set_level(logging.INFO)
    for name, (program, options) in runs.items():
        result = CliRunner().invoke(program, [*common, "--out", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.exception
        model = load(tmp_path / name / "model.keras")
        assert model.contract.task == name and model.name == name
        card = (tmp_path / name / "README.md").read_text()
        assert model.sha256 in card and "| 2 | " in card
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["README.md", "model.keras"]
    assert (
        load(tmp_path / "severity" / "model.keras").contract.lungs_sha256
        == load(tmp_path / "lungs" / "model.keras").sha256
    )


def test_slices_and_masks_change_alike_and_clips_stay_masked():
    rng = np.random.default_rng(0)
    mask = np.zeros((6, 64, 64), np.float32)
    mask[:, 16:48, 12:30] = 1
    hu = np.where(mask > 0, -850.0, 40.0).astype(np.float32)
    changed, marked = augment.slice_and_mask(hu, mask)
    changed, marked = changed.numpy(), marked.numpy()[..., 0] > 0
    assert set(np.unique(marked)) == {False, True}
    assert np.median(changed[marked]) < -700
    clip = rng.random((3, 8, 32, 32, 1), np.float32)
    clip[:, :, :, :10] = 0
    out = augment.clips(clip).numpy()
    assert out.shape == clip.shape and out.min() >= 0 and out.max() <= 1
    assert (out == 0).mean() > 0.15


def test_a_case_comes_back_as_it_was_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "case_shape", lambda seed: (12, 64, 64))
    cases._draw(tmp_path, 3)
    case = cases.read_case(tmp_path, 3)
    assert case.hu.shape == case.lungs.shape == (12, 64, 64)
    assert case.lungs.any() and not (case.lesions & ~case.lungs).any()
    assert sum(case.lobe_scores) == case.ct_score
