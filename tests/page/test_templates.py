"""The Jinja environment: everything is escaped, nothing is guessed, nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from tf_covid.page.templates import template

PACKAGE = """\
{% extends "base.html.j2" %}
{% block title %}{{ name }}{% endblock %}
{% block body %}<p>{{ name }} {{ fraction | percent }}</p>{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a template of its own."""
    (tmp_path / "somebodys_page").mkdir()
    (tmp_path / "somebodys_page" / "__init__.py").touch()
    (tmp_path / "somebodys_page" / "page.html.j2").write_text(PACKAGE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    template.cache_clear()
    return "somebodys_page"


def test_names_are_escaped_and_numbers_formatted(package: str) -> None:
    text = template(package, "page.html.j2").render(name="<b>&", fraction=0.5)
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "<p>&lt;b&gt;&amp; 50 %</p>" in text
    assert text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|<script|<link", text)


def test_a_name_that_is_missing_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="fraction"):
        template(package, "page.html.j2").render(name="x")


def test_a_template_that_is_missing_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.TemplateNotFound):
        template(package, "../setup.cfg")


def test_importing_the_room_is_cheap() -> None:
    heavy = "{'jinja2', 'matplotlib', 'numpy', 'PIL', 'tensorflow'}"
    code = (
        "import sys, tf_covid.page, tf_covid.page.templates, tf_covid.page.figure_style,"
        f" tf_covid.page.data_uri; sys.exit(bool({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
