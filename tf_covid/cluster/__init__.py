"""MANY SCANS → MANY MACHINES: `--engine ray` of infer and fit, on this machine or a cluster.

engine.py      the driver: cases out, outcomes in, each once
pool.py        the workers: started, given a case at a time, replaced when they die
worker.py      what runs on a node: readers and models of its own, the same `infer.Run`
connection.py  the Ray that is asked, and what it has
storages.py    where the answers go: folder_storage.py (a folder that all nodes share) or
               url_storage.py (a URL of fsspec), alike in storage.py
folds.py       `fit`: the folds of a run, a worker each
done.py        a row for each case that is done, by which a second run goes on

Ray and fsspec are an extra, [ray].
"""

from tf_covid.cluster.connection import ClusterOptions
from tf_covid.cluster.engine import infer_on_cluster

__all__ = ["ClusterOptions", "infer_on_cluster"]
