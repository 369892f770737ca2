"""A program that sends files by C-STORE: python sender.py PORT CALLED CALLING PAUSE_S FILE..."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pydicom
from pynetdicom import AE


def main() -> None:
    port, called, calling, pause = sys.argv[1:5]
    files = [Path(name) for name in sys.argv[5:]]
    node = AE(ae_title=calling)
    kinds = set()
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        kinds.add((header.SOPClassUID, header.file_meta.TransferSyntaxUID))
    for kind in sorted(kinds):
        node.add_requested_context(*kind)
    association = node.associate("127.0.0.1", int(port), ae_title=called)
    if not association.is_established:
        sys.exit(2)
    for file in files:
        status = association.send_c_store(file)
        print(f"{status.get('Status', -1):04X}", flush=True)
        time.sleep(float(pause))
    association.release()


main()
