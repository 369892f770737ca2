"""Ask a server over gRPC with TF Serving's own stubs (pip install tensorflow-serving-api).

python examples/ask_grpc.py scan.nii.gz [127.0.0.1:8500] [severity-i3d]
"""

import os
import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import tf_covid

path, address, model = (*sys.argv[1:], *["127.0.0.1:8500", "severity-i3d"][len(sys.argv) - 2 :])
scan = tf_covid.read(path)
request = predict_pb2.PredictRequest()
request.model_spec.name = model
request.model_spec.signature_name = "explain"
request.inputs["hu"].CopyFrom(tf.make_tensor_proto(scan.hu[np.newaxis]))
request.inputs["depth"].CopyFrom(tf.make_tensor_proto(np.array([len(scan.hu)], np.int32)))
# A scan of 300 slices is 157 MB, above gRPC's 4 MB.
options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
channel = grpc.insecure_channel(address, options)
token = os.environ.get("TFCOVID_TOKEN")
metadata = [("authorization", f"Bearer {token}")] if token else []
answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
    request, 600, metadata=metadata
)
outputs = {name: tf.make_ndarray(values) for name, values in answer.outputs.items()}
if outputs["slices_kept"][0] < 8:  # as `tfcovid infer` does
    sys.exit("refused: hardly any lung in this scan")
print("probabilities", outputs["probabilities"][0].round(4).tolist())
if "ct_score" in outputs:
    print("CT score", round(float(outputs["ct_score"][0]), 1))
print("attention", outputs["attention"].shape, "highest", float(outputs["attention"].max()))
