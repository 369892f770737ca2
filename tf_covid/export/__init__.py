"""MODEL → SAVEDMODEL: `tfcovid export`.

signatures.py  the stratifier, its volumes and its attention as functions of named tensors
savedmodel.py  the folders that TF Serving loads, with model card and input contract
warmup.py      the requests that a server answers before it is ready
graph_ops.py   which operations a graph may hold
"""
