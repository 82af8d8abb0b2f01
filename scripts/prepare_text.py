"""Bring the evaluation text to one UTF-8 file and a record of what it is.

SOURCE is `default` (the English Wikipedia sample that the gensim 4.4.0 wheel carries as test data, CC BY-SA, fetched
with pip, about 28 MB, and stripped of its markup in about 5 s) or a UTF-8 text file, which is used as it is, and then
nothing is fetched. Needs the network for `default` alone. Writes the text, then the record (name, licence, hash,
number of articles).
"""

from __future__ import annotations

import bz2
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from serveproof import results, script
from serveproof.errors import UserError
from serveproof.wheels import check_sha256, download_wheel, sha256_of

REQUIREMENT = "gensim==4.4.0"
# Any wheel carries the same data: one is named, so that no machine's Python or platform is without.
WHEEL = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
DUMP_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
MEND = "set `text` in config/config.yaml to a UTF-8 text file"
NOTE = "may have been in the model's training data; it serves relative comparison"

XML = "{http://www.mediawiki.org/xml/export-0.10/}"
NOT_PROSE_LINK = re.compile(r"\s*:?(file|image|category|media|[a-z]{2,3}(-[a-z]+)*)\s*:", re.IGNORECASE)
NOT_PROSE_TAGS = {"table", "ref", "references", "gallery", "math", "timeline", "imagemap", "score", "syntaxhighlight"}
NOT_PROSE_TAGS |= {"source", "pre", "code", "script", "style", "li"}
# What follows these headings is lists of titles and links.
APPENDICES = {"see also", "references", "notes", "footnotes", "external links", "further reading", "bibliography"}
APPENDICES |= {"sources", "citations", "notes and references", "works cited"}


def articles(dump: Path) -> Iterator[str]:
    """The wikitext of each article of a MediaWiki dump: namespace 0, not a redirect."""
    with bz2.open(dump) as opened:
        for _, element in ElementTree.iterparse(opened):  # noqa: S314 (as above)
            if element.tag == f"{XML}page":
                if element.findtext(f"{XML}ns") == "0" and element.find(f"{XML}redirect") is None:
                    yield element.findtext(f"{XML}revision/{XML}text") or ""
                element.clear()


def strip_markup(wikitext: str) -> str:
    """The prose of an article: no templates, tables, references, files, categories, lists' markers or appendices."""
    kept: list[object] = []
    in_appendix = False
    for node in mwparserfromhell.parse(wikitext).nodes:
        if isinstance(node, Heading) and node.level == 2:
            in_appendix = str(node.title).strip().lower() in APPENDICES
        if not in_appendix:
            kept.append(node)
    lines = (re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in plain(kept).split("\n"))
    # A table whose markup is broken reaches this as text.
    return "\n".join(line for line in lines if line and not line.startswith(("{|", "|", "!")))


def plain(nodes: list[object]) -> str:
    """Text of wikicode nodes. strip_code would keep tables, references and image captions, and removing is slow."""
    pieces = []
    for node in nodes:
        match node:
            case Text():
                pieces.append(str(node.value))
            case HTMLEntity():
                pieces.append(node.normalize() or "")
            case Heading():
                pieces.append("\n" + inner(node.title) + "\n")
            case ExternalLink() if node.title:
                pieces.append(inner(node.title))
            case Wikilink() if not NOT_PROSE_LINK.match(str(node.title)):
                pieces.append(inner(node.text if node.text else node.title))
            case Tag() if str(node.tag).lower() == "br":
                pieces.append("\n")
            case Tag() if node.contents and str(node.tag).strip().lower() not in NOT_PROSE_TAGS:
                pieces.append(inner(node.contents))
    return "".join(pieces)


def inner(code: Wikicode) -> str:
    return plain(list(code.nodes))


def default_text() -> tuple[str, int]:
    """The prose of the Wikipedia sample, articles joined by blank lines, and their number."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(REQUIREMENT, Path(folder), MEND, WHEEL)
        with zipfile.ZipFile(wheel) as archive:
            dump = Path(archive.extract(DUMP, folder))
        check_sha256(dump, DUMP_SHA256, MEND)
        stripped = [text for text in map(strip_markup, articles(dump)) if text]
    return "\n\n".join(stripped) + "\n", len(stripped)


def user_text(path: Path) -> str:
    """A user's text, as it is."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such text file; {MEND}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: no text in it; {MEND}")
    return text


def prepare(source: str, out_text: Path, out_record: Path) -> None:
    """Write the text, then its record."""
    if source == "default":
        text, count = default_text()
        name, origin = "English Wikipedia sample", f"{Path(DUMP).name} in the wheel {REQUIREMENT}"
        license_name, note = "CC BY-SA", NOTE
    else:
        text, count = user_text(Path(source)), 1
        name, origin, license_name, note = Path(source).name, source, "not recorded", "the user's own text, as it is"
    results.write_atomically(out_text, lambda temporary: temporary.write_bytes(text.encode("utf-8")))
    record = results.TextRecord(
        name=name,
        source=origin,
        sha256=sha256_of(out_text),
        license=license_name,
        characters=len(text),
        articles=count,
        note=note,
    )
    results.write(out_record, record)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--source", required=True, help="default, or a UTF-8 text file")
    parser.add_argument("--out-text", required=True, type=Path, help="text file to write")
    parser.add_argument("--out-record", required=True, type=Path, help="JSON record to write")
    script.run(lambda a: prepare(a.source, a.out_text, a.out_record), parser.parse_args())


if __name__ == "__main__":
    main()
