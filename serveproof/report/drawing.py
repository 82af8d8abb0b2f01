"""Charts as SVG text, drawn when the page is made: once for a wide and once for a narrow screen.

The page carries no drawing library. That would be 0.9 MB of the 3 MB, run before anything is seen, for tooltips that
an SVG's own title elements give too; and a page whose charts are there without scripts prints and reads alike
everywhere. What vl-convert writes is parsed and written anew from a list of known elements and attributes, at two
fifths of its size: nothing else can come into the page.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

import altair
import msgspec
import vl_convert
from markupsafe import Markup

from serveproof.report.charts import theme

# A drawing scales down but its letters should not: a phone gets one of its own.
WIDTHS = {"wide": 560, "narrow": 350}
SPACE = "{http://www.w3.org/2000/svg}"
ELEMENTS = {"svg", "g", "path", "line", "rect", "text", "tspan", "defs", "clipPath"}
INHERITED = ("fill", "stroke", "stroke-width", "stroke-opacity", "fill-opacity", "stroke-dasharray", "stroke-linecap",
             "font-size", "font-weight", "font-style", "text-anchor")  # fmt: skip
GEOMETRY = ("d", "transform", "x", "y", "x1", "y1", "x2", "y2", "dx", "dy", "width", "height", "viewBox")
KEPT = {*INHERITED, *GEOMETRY, "opacity", "clip-path", "id", "display"}
DEFAULTS = {"opacity": "1", "stroke-opacity": "1", "fill-opacity": "1", "stroke-width": "1", "x2": "0", "y2": "0",
            "transform": "translate(0,0)", "text-anchor": "start"}  # fmt: skip
NUMBER = re.compile(r"-?\d*\.?\d+(?:e[-+]?\d+)?")


def drawings(spec: dict[str, Any], name: str) -> Markup:
    """The chart as two svg elements, of which the style sheet shows one. name: unique in the page, for clip paths."""
    text = msgspec.json.encode(spec).decode()
    # Built from the listed elements and attributes alone, every text escaped by the serializer.
    return Markup("".join(_named(_svg(text, width), name, size) for size, width in WIDTHS.items()))  # noqa: S704


@lru_cache(maxsize=1024)
def _svg(spec: str, width: int) -> str:
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    whole = msgspec.json.decode(spec) | {"width": width, "config": theme(width)}
    drawn = ElementTree.fromstring(vl_convert.vegalite_to_svg(whole, vl_version=version))  # noqa: S314 - of our making
    return ElementTree.tostring(_slim(drawn), encoding="unicode")


def _named(svg: str, name: str, size: str) -> str:
    """Ids of one drawing must not be another's."""
    unique = re.sub(r'(id="|url\(#)(clip\d+)', rf"\1{name}-{size}-\2", svg)
    return unique.replace("<svg ", f'<svg class="{size}" ', 1)


def _slim(old: ElementTree.Element) -> ElementTree.Element:
    """The element with what is drawn and nothing else; a mark's description becomes its tooltip."""
    kind = old.tag.removeprefix(SPACE)
    attributes = {
        name: _rounded(value) if name in GEOMETRY else value
        for name, value in old.attrib.items()
        if name in KEPT and value != DEFAULTS.get(name)
    }
    if attributes.get("transform") == "translate(0,0)":
        del attributes["transform"]
    new = ElementTree.Element(kind, attributes)
    new.text = (old.text or "").strip() or None
    told = old.get("aria-label", "")
    if told and kind in {"path", "line", "rect"} and old.get("role") == "graphics-symbol":
        ElementTree.SubElement(new, "title").text = told
    for child in old:
        if child.tag.removeprefix(SPACE) in ELEMENTS and not _unseen(child):
            _append(new, _slim(child))
    if kind == "g":
        _hoist(new)
    if "role-axis-title" in old.get("class", ""):
        new.set("class", "axis-title")
    return new


def _append(parent: ElementTree.Element, child: ElementTree.Element) -> None:
    """A group that says nothing gives its children to its parent; an empty one is left out."""
    if child.tag != "g":
        parent.append(child)
    elif len(child) and not child.attrib:
        parent.extend(child)
    elif len(child):
        parent.append(child)


def _hoist(group: ElementTree.Element) -> None:
    """What most children say alike is said once, by the group."""
    children = [one for one in group if one.tag != "title"]
    if len(children) < 2:
        return
    for name in INHERITED:
        if name in group.attrib or any(name not in one.attrib for one in children):
            continue
        value, times = Counter(one.attrib[name] for one in children).most_common(1)[0]
        if times > 1:
            group.set(name, value)
            for one in children:
                if one.attrib[name] == value:
                    del one.attrib[name]


def _unseen(element: ElementTree.Element) -> bool:
    """Vega's empty back- and foregrounds, and what it draws transparent to catch the mouse."""
    look = element.attrib
    if element.tag != f"{SPACE}path":
        return False
    empty = look.get("d", "") in {"", "M0,0h0v0h0Z"} or look.get("display") == "none"
    return empty or ("background" in look.get("class", "") and not {"fill", "stroke"} & look.keys())


def _rounded(text: str) -> str:
    return NUMBER.sub(lambda found: f"{round(float(found[0]), 1):g}", text)
