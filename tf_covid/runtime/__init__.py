"""ANSWERS FROM WHAT WAS MADE ONCE: graphs of TensorFlow, kept; or models in OpenVINO, an extra."""
