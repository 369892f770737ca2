"""KERAS = SAVEDMODEL = SERVER: `tfcovid verify`.

verify.py     every way to an answer, compared value by value
reference.py  what the models of this process answer, and the tolerances
replay.py     an export's graph in a process of its own
openvino.py   the same graph in a second runtime
"""
