"""The HTTP side of the server, in the order in which a request walks through it.

middleware.py    who asks
body.py          reading what was sent, with limits and time-outs
routes.py        TF Serving's REST API
schema.py        what `/openapi.json` says of `/v1/scans`
json_text.py     reading JSON, with a limit on its values
decode.py        JSON → arrays; encode.py: arrays → JSON
scans.py         `POST /v1/scans`: whole scans; scan_process.py: the child that answers one
"""
