from __future__ import annotations

import bz2
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from serveproof import results
from serveproof.errors import UserError
from serveproof.wheels import sha256_of


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic'' [[anarchy|order]] in [[France]].", "Bold and italic order in France."),
        ("One<ref name=a>Smith, ''p. 3''</ref> two{{cite|a=[[b]]}}<ref name=a/>.", "One two."),
        ("A[[File:x.jpg|thumb|Its [[caption]].]] b [[Category:Things]][[de:Ding]][[zh-yue:X]]c", "A b c"),
        ("Before\n{| class=wikitable\n|-\n| [[cell]] || {{x}}\n|}\nafter", "Before\nafter"),
        ("{| broken table\n|-\n! head\n| cell\nprose", "prose"),
        ("Intro\n\n\n== Past ==\nText\n== See also ==\n* [[List]]\n== External links ==\n* [a b]", "Intro\nPast\nText"),
        ("== References ==\nx\n== Later ==\ny", "Later\ny"),
        ("[http://a.b the site], http://c.d/e and &ndash; &amp;&nbsp;x<br>y <!-- no -->", "the site, and – & x\ny"),
        ("E<sub>2</sub> <math>x^2</math> <code>c</code>z", "E2 z"),
    ],
)
def test_strip_markup(script: ModuleType, wikitext: str, expected: str) -> None:
    assert script.strip_markup(wikitext) == expected


def test_articles_of_a_dump(script: ModuleType, tmp_path: Path) -> None:
    page = "<page><title>t</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
    pages = page.format(0, "", "one") + page.format(4, "", "talk") + page.format(0, '<redirect title="x"/>', "#R")
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}{page.format(0, "", "two")}</mediawiki>'
    (tmp_path / "dump.bz2").write_bytes(bz2.compress(xml.encode()))
    assert list(script.articles(tmp_path / "dump.bz2")) == ["one", "two"]


def test_default_text(script: ModuleType, tmp_path: Path) -> None:
    text, record = tmp_path / "text.txt", tmp_path / "text.json"
    try:
        script.prepare("default", text, record)
    except UserError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    found = results.read(record, results.TextRecord)
    assert found.articles == 106
    assert found.characters > 2_500_000
    assert found.license == "CC BY-SA"
    assert "training data" in found.note
    assert found.sha256 == sha256_of(text)
    content = text.read_text(encoding="utf-8")
    assert len(content) == found.characters
    assert content.startswith("Anarchism is a political philosophy")
    # What is left is the markup that authors left unclosed.
    assert sum(content.count(mark) for mark in ("{{", "{|", "<ref", "[[")) < 60


def test_users_text_is_used_as_it_is(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "download_wheel", lambda *_: pytest.fail("fetched something"))
    source, text, record = tmp_path / "mine.txt", tmp_path / "r" / "text.txt", tmp_path / "r" / "text.json"
    source.write_bytes("Zwölf\r\n[[Boxkämpfer]] \n".encode())
    script.prepare(str(source), text, record)
    assert text.read_bytes() == source.read_bytes()
    found = results.read(record, results.TextRecord)
    assert (found.name, found.characters, found.articles) == ("mine.txt", 23, 1)


def test_bad_sources_are_one_line(script: ModuleType, tmp_path: Path, main_error: Callable[..., str]) -> None:
    def error(name: str) -> str:
        outputs = ("--out-text", tmp_path / "text.txt", "--out-record", tmp_path / "text.json")
        return main_error(script, "--source", tmp_path / name, *outputs)

    assert "absent.txt: no such text file; set `text` in config/config.yaml" in error("absent.txt")
    (tmp_path / "latin.txt").write_bytes("Zwölf".encode("latin-1"))
    assert "latin.txt: not UTF-8 (byte 2)" in error("latin.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    assert "empty.txt: no text in it" in error("empty.txt")
    assert not (tmp_path / "text.txt").exists()


def test_download_that_fails(
    script: ModuleType, tmp_path: Path, main_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    outputs = ("--out-text", tmp_path / "text.txt", "--out-record", tmp_path / "text.json")
    assert "could not download gensim==4.4.0" in main_error(script, "--source", "default", *outputs)
