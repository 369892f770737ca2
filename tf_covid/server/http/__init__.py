"""The HTTP side of the server, in the order in which a request walks through it.

middleware.py    who asks
body.py          reading what was sent, with limits and time-outs
routes.py        TF Serving's REST API
json_text.py     numbers in JSON, read without a list of them
decode.py        JSON → arrays; encode.py: arrays → JSON
scans.py         `POST /v1/scans`: whole scans; scan_process.py: the child that answers one
"""
