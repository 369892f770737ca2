"""Which operations a served graph may not hold.

A SavedModel is a program, and it runs with our rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tf_covid.errors import ServingError

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

#: Run Python, read or write files, or call other machines, wherever they stand in a file.
#: `Experimental` may precede.
_NEVER = re.compile(
    r"""(Experimental)?(
      (Eager)?PyFunc(Stateless)? | ReadFile | WriteFile | MatchingFiles(Dataset)?
    | (WholeFile|TextLine|TFRecord|FixedLengthRecord|LMDB)Reader(V\d)? | RecordInput
    | (TextLine|TFRecord|FixedLengthRecord|LMDB|Sql|CSV|Load|Save|DataService)Dataset(V\d)?
    | DatasetToTFRecord
    | (ListSnapshotChunks|Cache)Dataset(V\d)? | Snapshot(Chunk|Nested)?Dataset(Reader)?(V\d)?
    | InitializeTableFromTextFile(V2)? | GenerateVocabRemapping | LoadAndRemapMatrix
    | CheckpointHasTensor
    | CreateSummary(File|Db)Writer | ImportEvent | Write\w*Summary | Debug\w+
    | FileSystemSetConfiguration
    | DistributedSave | Rpc\w+ | (Generate)?BigQuery\w+ | Bigtable\w+ | RegisterDataset(V2)?
    )""",
    re.VERBOSE,
)

#: What SavedModel's own saver is made of: allowed there, and nowhere that a signature reaches.
_SAVER = re.compile(r"(Save|Restore)(Slices?|V2)?|MergeV2Checkpoints|ShardedFile(name|spec)")

_SAVERS_OWN = re.compile(r"__inference__?traced_(save|restore)_\d+")


def check(meta_graph: MetaGraphDef) -> None:
    """Refuse a graph that may touch files, run Python or call other machines.

    The saver's own Save and Restore operations are allowed where TensorFlow puts them: in functions
    of their own, which neither a signature nor any function that can be called by name leads to.

    Args:
        meta_graph: `MetaGraphDef` of a SavedModel.

    Raises:
        ServingError: With the names of the operations.
    """
    graph = meta_graph.graph_def
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    savers = {name for name in functions if _SAVERS_OWN.fullmatch(name)}
    savers -= set(meta_graph.object_graph_def.concrete_functions) | _reached_by_signatures(
        meta_graph, functions
    )
    bad = set(_denied(graph.node, saver=False))
    for name, nodes in functions.items():
        bad.update(_denied(nodes, saver=name in savers))
    if bad:
        raise ServingError(
            f"its graph holds operations that are not served: {', '.join(sorted(bad)[:10])}"
        )


def _denied(nodes: Iterable[Any], *, saver: bool) -> Iterator[str]:
    for node in nodes:
        to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
        # These read their description of messages from a file, unless they take what is built in.
        described = node.op in ("DecodeProtoV2", "EncodeProto") and node.attr["descriptor_source"].s
        to_file = to_file or described not in (False, b"", b"local://")
        if to_file or _NEVER.fullmatch(node.op) or (_SAVER.fullmatch(node.op) and not saver):
            yield node.op


def _called(node: NodeDef) -> Iterator[str]:
    """Names of the functions that a node may call.

    An operation can be the name of a function, too.
    """
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _reached_by_signatures(meta_graph: MetaGraphDef, functions: dict[str, Any]) -> set[str]:
    """Names of the functions that a call of any signature may run."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    tensors = [
        info.name
        for signature in meta_graph.signature_def.values()
        for info in signature.outputs.values()
    ]
    waiting, seen, reached = [_node_of(name) for name in tensors], set[str](), set[str]()
    called: list[str] = []
    while waiting:
        if (name := waiting.pop()) in seen or name not in nodes:
            continue
        seen.add(name)
        waiting.extend(map(_node_of, nodes[name].input))
        called.extend(_called(nodes[name]))
    while called:
        if (name := called.pop()) in reached or name not in functions:
            continue
        reached.add(name)
        called.extend(inner for node in functions[name] for inner in _called(node))
    return reached


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
