"""Small real models."""

from tests.servers import small_files  # fixtures
