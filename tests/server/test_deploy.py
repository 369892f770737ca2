"""The files for TF Serving itself, as far as they can be read without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from tf_covid.export.savedmodel import BATCHING, CLIP_SUFFIX
from tf_covid.weights import catalog

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[2] / "deploy"


def batching_parameters():
    """The message of TF Serving's session_bundle_config.proto, which no Python package has."""
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="t", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    kinds = descriptor_pb2.FieldDescriptorProto
    numbers = [
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
        "num_batch_threads",
    ]
    for number, name in enumerate(numbers, 1):
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=kinds.LABEL_OPTIONAL,
            type_name=".google.protobuf.Int64Value",
        )
    message.field.add(
        name="thread_pool_name",
        number=5,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=".google.protobuf.StringValue",
    )
    message.field.add(
        name="allowed_batch_sizes", number=6, type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED
    )
    message.field.add(
        name="pad_variable_length_inputs",
        number=7,
        type=kinds.TYPE_BOOL,
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))()


def test_the_served_models_are_shipped_ones_and_their_clip_entries():
    config = text_format.Parse(
        (DEPLOY / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    models = {one.name: one for one in config.model_config_list.config}
    roads = {name for name in models if not name.endswith(CLIP_SUFFIX)}
    assert roads
    assert roads <= set(catalog.shipped())
    assert set(models) == roads | {name + CLIP_SUFFIX for name in roads}
    for name, one in models.items():
        assert one.base_path == f"/models/{name}"
        assert one.model_platform == "tensorflow"
        assert one.model_version_policy.latest.num_versions == 1


def test_only_clips_are_batched(small_export):
    of_server = text_format.Parse(
        (DEPLOY / "batching_parameters.txt").read_text(), batching_parameters()
    )
    assert of_server.num_batch_threads.value >= 1
    assert not (small_export.stratifier / BATCHING).exists()
    of_clips = text_format.Parse((small_export.clip / BATCHING).read_text(), batching_parameters())
    assert of_clips.max_batch_size.value > 1
    assert of_clips.max_enqueued_batches.value > 0
    assert not of_clips.pad_variable_length_inputs


def test_the_image_copies_what_its_files_name():
    lines = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.+) /(?:models|config)", lines, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"deploy/models.config", "deploy/batching_parameters.txt"} <= sources
    config = text_format.Parse(
        (DEPLOY / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    assert {f"saved_models/{one.name}" for one in config.model_config_list.config} <= sources
    for name in ("models.config", "batching_parameters.txt"):
        assert f"=/config/{name}" in lines


@pytest.mark.parametrize("name", ["README.md", "Dockerfile"])
def test_no_latest_tag(name):
    assert not re.search(
        r"tensorflow/serving(:latest)?\s*$", (DEPLOY / name).read_text(), re.MULTILINE
    )
