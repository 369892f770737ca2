"""Graphs that were kept: the answers of the models that were traced, and never from what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from tests.small_scans import made_scan
from tf_covid import local
from tf_covid.cli import main
from tf_covid.errors import ModelError
from tf_covid.infer import Options
from tf_covid.local import LocalModels
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.pipeline import stratify
from tf_covid.runtime import behind as asked
from tf_covid.runtime import cache, graphs
from tf_covid.runtime.graphs import FACTS, WEIGHTS, GraphModels, of_options


@pytest.fixture(scope="module")
def options(small_files: Any) -> Options:
    return Options(
        models=(str(small_files.network),),
        lungs_model=str(small_files.lungs),
        lobes_model=str(small_files.lobes),
    )


def loaded(options: Options) -> LocalModels:
    return LocalModels(
        options.models,
        lungs=options.lungs_model,
        lobes=options.lobes_model,
        precision=options.precision,
        allow_other_lungs=options.allow_other_lungs,
    )


@pytest.fixture(scope="module")
def here(options: Options) -> LocalModels:
    return loaded(options)


@pytest.fixture
def loaded_before(here: LocalModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that are asked for are loaded and traced already."""
    monkeypatch.setattr(graphs, "LocalModels", lambda *args, **named: here)


def kept(options: Options) -> GraphModels:
    """Made and kept, if they are not yet, and then from the folder."""
    of_options(options)
    models = of_options(options)
    assert isinstance(models, GraphModels)
    return models


@pytest.fixture(scope="module")
def there(options: Options, folder: Path) -> GraphModels:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(folder))
        return kept(options)


def assert_same(one: Any, two: Any) -> None:
    """Two results: every value, and every voxel of their maps."""
    left, right = one.as_dict(), two.as_dict()
    for values in (left, right):
        del values["timings_s"], values["answered_at"]
    assert left == right
    for name in ("lungs", "attention", "kept", "lobes", "lesions"):
        np.testing.assert_array_equal(getattr(one.maps, name), getattr(two.maps, name))


def test_a_result_is_that_of_the_traced_models(here, there):
    for name in (
        *("task", "finds_disease", "finds_lobes", "other_lungs", "endpoint", "slice_minimum"),
        *("weights_sha256", "files_sha256", "versions", "lungs_grid"),
    ):
        assert getattr(here, name) == getattr(there, name), name
    for seed, slices in ((0, None), (1, 20), (2, 31)):
        results = [stratify(made_scan(seed, slices), models) for models in (here, there)]
        assert_same(*results)
        assert results[0].maps.attention.any()


@pytest.mark.parametrize(
    ("method", "target"),
    [("gradcam++", "severity"), ("layercam", "severity"), ("gradcam", "class"), ("none", "class")],
)
def test_every_map_is_that_of_the_traced_models(method, target, here, there):
    results = [
        stratify(made_scan(), models, attention=method, attention_target=target)
        for models in (here, there)
    ]
    assert_same(*results)


def test_a_mask_of_the_users_own_is_taken(here, there):
    scan = made_scan()
    inside = ndimage.binary_fill_holes(scan.hu > -500, np.ones((1, 3, 3)))
    mask = inside & (scan.hu < -500)
    assert_same(*(stratify(scan, models, lungs=mask) for models in (here, there)))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["bfloat16", "ensemble", "no lobes", "other lungs"])
def test_other_models_are_kept_as_well(change, options, small_files, in_folder):
    changed = {
        "bfloat16": replace(options, precision="bfloat16"),
        "ensemble": replace(options, models=(*options.models, str(small_files.other))),
        "no lobes": replace(options, lobes_model="none"),
        "other lungs": replace(options, lobes_model=None, allow_other_lungs=True),
    }[change]
    there = kept(changed)
    assert_same(*(stratify(made_scan(), models) for models in (loaded(changed), there)))


def test_nothing_is_built_and_nothing_traced(there, options, in_folder, monkeypatch):

    def never(*args: Any, **named: Any) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(local, "load", never)
    monkeypatch.setattr("tf_covid.preprocessor.load", never)
    monkeypatch.setattr("tensorflow.function", never)
    result = stratify(made_scan(), of_options(options))
    assert result.maps.attention.any()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "flipped") for name in ("segment.pb", "explain-0.pb", WEIGHTS, FACTS)),
        # It reads as the same graph.
        ("prepare-0.pb", "grown"),
        ("classify-0.pb", "cut"),
        ("prepare-0.pb", "gone"),
        (WEIGHTS, "gone"),
        (FACTS, "empty"),
        (cache.SUMS, "empty"),
        (cache.SUMS, "gone"),
        # A list of sha256 that fits says no more than that a file is what somebody wrote.
        *((name, "another's") for name in ("segment.pb", WEIGHTS, FACTS)),
    ],
)
def test_what_is_damaged_is_not_used(name, how, there, options, folder, tmp_path):
    (place,) = _places(folder, options)
    place = Path(shutil.copytree(place, tmp_path / "kept"))
    assert graphs._kept(place, there._load) is not None
    path = place / name
    data = path.read_bytes()
    if how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "grown":
        path.write_bytes(data + b"\xa2\x06\x01x")  # a field of a message that nobody knows
    elif how == "gone":
        path.unlink()
    elif how == "another's":
        path.write_bytes(b'PK\x03\x04{"task": "severity"}')
        cache.seal(place, [path.name for path in place.iterdir() if path.name != cache.SUMS])
    else:
        path.write_bytes(data[: len(data) // 3] if how == "cut" else b"")
    assert graphs._kept(place, there._load) is None


def test_what_is_damaged_is_made_again(there, options, loaded_before, in_folder):
    (place,) = _places(in_folder, options)
    (place / WEIGHTS).write_bytes(b"")
    lines: list[str] = []
    assert isinstance(of_options(options, on_message=lines.append), LocalModels)
    assert [line.startswith("graphs are kept") for line in lines] == [True]
    assert_same(stratify(made_scan(), of_options(options)), stratify(made_scan(), there))


def key_of(sources: Any, behind: asked.Behind, precision: str = "float32") -> str:
    return graphs._key(sources, behind, precision, behind.files_sha256(sources))


def _places(cached: Path, options: Options) -> list[Path]:
    key = key_of(options.models, asked.Behind(options.lungs_model, options.lobes_model))
    return [path for path in (cached / "graphs").iterdir() if path.name == key]


def test_what_decides_the_graphs_decides_the_folder(options, small_files, tmp_path, monkeypatch):
    behind = asked.Behind(options.lungs_model, options.lobes_model)
    copy = shutil.copy(small_files.network, tmp_path / small_files.network.name)
    name = key_of(options.models, behind)
    assert key_of((str(copy),), behind) == name
    names = [
        name,
        key_of((str(small_files.other),), behind),
        key_of((*options.models, str(small_files.other)), behind),
        key_of(options.models, behind, "bfloat16"),
        key_of(options.models, asked.Behind(options.lungs_model, "none")),
        key_of(options.models, asked.Behind(None, options.lobes_model)),
        key_of(options.models, replace(behind, allow_other_lungs=True)),
        key_of(options.models, asked.Behind(options.lungs_model)),
    ]
    project = tmp_path / "tf_covid"
    for room in asked._ROOMS:
        (project / room).mkdir(parents=True)
    (project / "layers" / "window.py").write_text("a = 1\n", "utf-8")
    monkeypatch.setattr(asked, "_PROJECT", project)
    names.append(key_of(options.models, behind))
    (project / "layers" / "window.py").write_text("a = 2\n", "utf-8")
    names.append(key_of(options.models, behind))
    assert len(set(names)) == len(names)


def test_all_code_that_decides_a_graph_decides_its_folder():
    """Who changes a layer must not be answered by the layer of before."""
    program = (
        "import sys, tf_covid.runtime.graphs, tf_covid.export.signatures\n"
        "print(*(name for name, module in sys.modules.items() if name.startswith('tf_covid.')"
        " and hasattr(module, '__path__')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    rooms = {name.split(".")[1] for name in done.stdout.split()}
    # What reads scans and what writes answers have no say in a graph.
    assert rooms - {"cohort", "dicom_results", "page", "report"} <= set(asked._ROOMS)


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_without_a_cache_the_models_answer(place, options, loaded_before, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder", "utf-8")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    if place == "no home":
        monkeypatch.delenv(cache.VARIABLE)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", _homeless)
    lines: list[str] = []
    models = of_options(options, on_message=lines.append)
    assert stratify(made_scan(), models).severity is not None
    assert len(lines) == (place == "a file")
    assert all("no graphs can be kept" in line and "file" in line for line in lines)


def _homeless() -> Path:
    raise RuntimeError("no home")


def test_a_full_disk_keeps_nothing(options, loaded_before, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))

    def full(*args: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    lines: list[str] = []
    assert isinstance(of_options(options, on_message=lines.append), LocalModels)
    assert ["No space left" in line for line in lines] == [True]
    assert list((tmp_path / "graphs").iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    options, small_files, loaded_before, tmp_path, monkeypatch
):
    """What was loaded is not what the name of the folder says."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    of_options(replace(options, models=(str(small_files.other),)))
    assert not (tmp_path / "graphs").exists()


def test_those_used_last_stay(there, options, folder, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(graphs, "KEPT", 2)
    (place,) = _places(folder, options)
    names = ("first", "second", "third")
    for second, name in enumerate((place.name, *names), 1):
        shutil.copytree(place, tmp_path / "graphs" / name)
        os.utime(tmp_path / "graphs" / name, (second, second))
    (tmp_path / "graphs" / "not ours").mkdir()
    shutil.copytree(place, tmp_path / "graphs" / ".written just now")
    # It is used, so it is not the oldest any more.
    assert isinstance(of_options(options), GraphModels)
    graphs._remove_unused(tmp_path / "graphs")
    left = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert left == {place.name, "third", "not ours", ".written just now"}


def test_models_that_cannot_answer_are_named_and_not_kept(there, options, in_folder, tmp_path):
    before = len(list((in_folder / "graphs").iterdir()))
    with pytest.raises(ModelError, match="neither a file nor a shipped model"):
        of_options(replace(options, models=("nobody",)))
    (tmp_path / "torn.keras").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ModelError, match="torn"):
        of_options(replace(options, models=(str(tmp_path / "torn.keras"),)))
    assert len(list((in_folder / "graphs").iterdir())) == before


def test_without_a_map_nothing_is_traced_for_one(options, loaded_before, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    lines: list[str] = []
    of_options(replace(options, attention="none"), on_message=lines.append)
    of_options(replace(options, attention_target="class"), on_message=lines.append)
    assert not (tmp_path / "graphs").exists()


def test_without_a_map_kept_graphs_are_used(there, options, in_folder):
    assert isinstance(of_options(replace(options, attention="none")), GraphModels)


@pytest.mark.slow
def test_two_at_once_both_answer(options, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    answers: list[Any] = []

    def work() -> None:
        answers.append(stratify(made_scan(), of_options(options)).severity.probabilities)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    np.testing.assert_array_equal(*answers)
    assert len(list((tmp_path / "graphs").iterdir())) == 1


def test_the_command_keeps_them_and_answers_alike(options, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    scan = write_nifti_volume(made_scan().hu, made_scan().affine, tmp_path / "scan.nii.gz")
    words = ["infer", str(scan), "--model", options.models[0]]
    words += ["--lungs-model", options.lungs_model, "--lobes-model", options.lobes_model]
    results = []
    for turn in ("first", "second"):
        done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / turn)])
        assert done.exit_code == 0, done.output
        assert ("graphs are kept" in done.output) == (turn == "first")
        values = json.loads((tmp_path / turn / "scan" / "result.json").read_text("utf-8"))
        del values["timings_s"], values["answered_at"]
        results.append(values)
    assert results[0] == results[1]
