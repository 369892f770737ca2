"""SAVEDMODEL → ANSWERS: exports, the server that speaks TF Serving's API, and its client.

The embedded server, in the order in which a request walks through it: `guard` (who asks), `body`
(reading), `rest` or `rpc` (the two protocols), `tensors`, `answers` and `protos` (their numbers),
`engine` (the queue), `servable` (a loaded version), under `repository` (which version is served);
`scans` answers a whole scan with a child process; `server` holds it all. Importing this package
imports nothing heavy.
"""
