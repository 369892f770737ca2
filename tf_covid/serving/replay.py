"""`python -m tf_covid.serving.replay EXPORT QUESTIONS ANSWERS`: ask a SavedModel in a process of its own.

Nothing of `tf_covid` is imported: what answers is the export alone, as in a server.
"""

from __future__ import annotations

import pickle
import sys


def main(export: str, questions: str, answers: str) -> None:
    """Answer each question.

    Args:
        export: Folder of a version.
        questions: Pickle of a list of (signature, named inputs), written by the process that called.
        answers: Pickle of the list of named outputs, to be written.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(export)
    with open(questions, "rb") as file:
        asked = pickle.load(file)
    found = []
    for signature, inputs in asked:
        outputs = loaded.signatures[signature](**{name: tf.constant(values) for name, values in inputs.items()})
        found.append({name: values.numpy() for name, values in outputs.items()})
    with open(answers, "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
