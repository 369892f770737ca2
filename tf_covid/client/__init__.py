"""REMOTE MODELS: a server of ours, or TF Serving, in the place of the models of this process.

remote.py      what `pipeline.stratify` asks for, answered by a server
transport.py   one request by REST or gRPC, with its limits and retries
"""
