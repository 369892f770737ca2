"""Small real models, and servers of them."""

from tests.servers import (  # fixtures
    _later,
    _until,
    exports,
    gate,
    new_store,
    running,
    small_export,
    small_files,
    small_lungs,
    small_models,
    start,
    store,
)
