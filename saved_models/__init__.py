"""The shipped weights, a folder and a model card each.

`tf_covid.weights.catalog` reads them as package data.
"""
