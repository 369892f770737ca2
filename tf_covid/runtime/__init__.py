"""ANSWERS WITHOUT TENSORFLOW: the models of an export in OpenVINO, an extra; converted once."""
