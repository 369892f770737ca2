"""The Jinja environment of every page."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tf_covid.page import formats, palette

if TYPE_CHECKING:
    import jinja2

#: Number formats that a template uses as filters, by their own names.
_FILTERS = (
    formats.compact,
    formats.coordinate,
    formats.decimals,
    formats.duration,
    formats.millilitres,
    formats.moment,
    formats.p_value,
    formats.percent,
    formats.probability,
    formats.signed,
    formats.version,
)


@functools.cache
def template(package: str, name: str) -> jinja2.Template:
    """A template of a package; it may extend `base.html.j2` and templates of its own package.

    Args:
        package: Dotted name of the package that the template lies in.
        name: File name of the template.

    Raises:
        jinja2.TemplateNotFound: If neither the package nor this one has it.
    """
    import jinja2

    # Names of cases, sites, models and tags come from files that anybody may have written:
    # everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(where, "") for where in (package, "tf_covid.page")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = palette
    environment.filters |= {function.__name__: function for function in _FILTERS}
    return environment.get_template(name)
