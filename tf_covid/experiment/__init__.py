"""MANIFEST → RUN: `tfcovid fit` and `tfcovid evaluate`.

fit.py         cache, folds, a network a fold, and the study of their answers
checks.py      what is looked at before hours of reading
one_network.py one network: trained, written, and asked
records.py     what the cache is to hold of a cohort, and what it holds
evaluate.py    frozen models on a labelled cohort
predict.py     what networks answer, as the study's tables
run_folder.py  what a run was asked for, and who works in its folder
"""
