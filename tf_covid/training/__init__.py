"""How networks are trained.

`tfcovid fit` (tf_covid.experiment.fit) trains one network a fold:

settings.py       the TOML that rejects typos
network_spec.py   what a network is built from: frozen before anything is built
tasks.py          what a network is trained to answer: inputs, targets, losses, outputs
losses.py         losses of the outputs
trainer_model.py  a network and the layers in front of it, as Keras' `fit` wants it
norms.py          the statistics of batch norms, taken anew before a network is judged or saved
fold.py           epochs, stages, early stopping
checkpoint.py     the state on disk, from which a killed run goes on bit for bit

`configs/ship-*.toml` make the weights that ship, from synthetic chests only.
"""
