"""The embedded server: TF Serving's REST and gRPC API over a folder of exports, and whole scans.

settings.py      how a server is set up
server.py        starts and stops all of it; `tfcovid serve`
http/            the REST API, in the order in which a request walks through it
grpc_service.py  the gRPC API
context.py       what both protocols of one server share
tensor_spec.py   name, type and shape of an input or output of a signature
tensor_proto.py  TensorProto to arrays and back
batcher.py       the bounded queue, with time limits and batches of clips
repository.py    which version of which model is served
servable.py      one loaded version and its signatures
metrics.py       counters for Prometheus
errors.py        why a request is not answered, with HTTP status and gRPC code

Importing this package imports nothing heavy.
"""
