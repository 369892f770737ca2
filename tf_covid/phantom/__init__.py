"""A chest we know everything about: synthetic CT with its lungs, lobes, lesions, scores and class."""

from tf_covid.phantom.chest import Chest, draw_chest
from tf_covid.phantom.settings import PhantomSettings

__all__ = ["Chest", "PhantomSettings", "draw_chest"]
