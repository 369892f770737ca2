"""How the shipped weights were trained, each with one command.

`python -m tf_covid.training.lungs` trains the lung U-Net, `python -m tf_covid.training.severity` the I3D behind it;
both learn from synthetic chests only. `saved_models/<name>/README.md` has the exact command and what came out.
"""
