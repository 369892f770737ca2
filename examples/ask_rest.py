"""Ask a server over REST by the standard library; `tf_covid` reads and checks the scan.

    python examples/ask_rest.py scan.nii.gz [http://127.0.0.1:8501] [severity-i3d]

Any client in any language does the same: bring the HU into canonical order, send them as base64 of
little-endian int16.
"""

import base64
import json
import os
import sys
import urllib.request

import tf_covid

path, url, model = (*sys.argv[1:], *["http://127.0.0.1:8501", "severity-i3d"][len(sys.argv) - 2 :])
scan = tf_covid.read(path)
question = {
    "signature_name": "serving_bytes",
    "inputs": {
        "hu_bytes": [{"b64": base64.b64encode(scan.hu.astype("<i2").tobytes()).decode()}],
        "shape": [list(scan.shape)],
    },
}
headers = {"Content-Type": "application/json"}
if token := os.environ.get("TFCOVID_TOKEN"):
    headers["Authorization"] = f"Bearer {token}"
request = urllib.request.Request(  # noqa: S310  # the address is the caller's own
    f"{url}/v1/models/{model}:predict", json.dumps(question).encode(), headers
)
with urllib.request.urlopen(request, timeout=600) as response:  # noqa: S310  # as above
    answer = json.load(response)["outputs"]
if answer["slices_kept"][0] < 8:  # as `tfcovid infer` does
    sys.exit("refused: hardly any lung in this scan")
print("probabilities", [round(value, 4) for value in answer["probabilities"][0]])
if "ct_score" in answer:
    print("CT score", round(answer["ct_score"][0], 1))
