"""One self-contained HTML page from sections of text, tables and pictures: no file beside it, no network, and one script of our own.

A content security policy allows that script and style by their hashes and pictures that are in the page, and nothing else.
Without scripts everything can be read; tables are not sorted then, and a `TokenView` gives way to a remark.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sysout_jax.reports.escaping import escaped_text as _text
from sysout_jax.reports.interactive import Curves, TokenView
from sysout_jax.reports.script import CONTENT, source_hash


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers under a header. `note` stands below."""

    header: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One of the report's figures and the sentence that says what to see in it."""

    figure: str
    caption: str


@dataclass(frozen=True)
class Link:
    """The way to a file below the page's directory, under a picture of what is there."""

    text: str
    path: str
    picture: bytes | None = None


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order; a string is a paragraph. All text is escaped by the page."""

    title: str
    blocks: tuple[str | Table | Picture | Link | Curves | TokenView, ...]


_NUMBER = re.compile(r"[−-]?([\d,]*\.?\d+(e[−+-]?\d+)?|∞)%?|n/a( \(NaN\))?|–")

#: Columns whose whole numbers are names: 1229, not 1,229.
NAMES = {"layer", "head", "sequence", "token", "channel", "dim", "row", "column", "position"}

FOLD = 12  # rows from which on a table is folded, and can be sorted

#: Every page of every version holds this line: `ours.py` knows it by that, so it stays.
MARK = ":root { --ink: #1a1a1a; --soft: #5a5a5a; --line: #d5d5d5; --tint: #f3f5f7; }"

_CSS = (
    f"\n{MARK}"
    + """
* { box-sizing: border-box; }
body { color: var(--ink); background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  max-width: 62rem; margin: 0 auto; padding: 1.2rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
a { color: #0058a3; }
.headline { font-size: 1.1rem; background: var(--tint); border-left: 4px solid #0072b2; padding: .7rem 1rem; margin: 0; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; max-width: 56rem; height: auto; }
figure.link img { max-width: 34rem; margin-bottom: .4rem; }
figcaption { color: var(--soft); margin-top: .5rem; max-width: 56rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--ink); vertical-align: bottom; line-height: 1.25; }
td:last-child, th:last-child { padding-right: 0; }
td.number, th.number { text-align: right; padding-left: .2rem; padding-right: .2rem; }
th.number { font-size: .82rem; }
td.number + td:not(.number), th.number + th:not(.number) { padding-left: .8rem; }
td.number { white-space: nowrap; }
.note { color: var(--soft); font-size: .9rem; }
details > summary { cursor: pointer; color: #0058a3; }
th button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.tokens { margin: 1rem 0; }
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; align-items: center; }
.controls label[hidden] { display: none; }
.controls input { vertical-align: middle; width: 12rem; }
.controls output { font-variant-numeric: tabular-nums; }
.text { line-height: 1.75; max-height: 24rem; overflow: auto; border: 1px solid var(--line); padding: .5rem; }
.text span { display: inline-block; max-width: 100%; border-radius: 2px; line-height: 1.35; padding: 0 .12rem; margin: .1rem 1px .1rem 0;
  overflow-wrap: anywhere; }
.text span:hover { outline: 2px solid #d55e00; }
.readout { min-height: 1.5em; margin: .3rem 0; }
.heads { width: 100%; border: 1px solid var(--line); }
.heads rect { cursor: pointer; }
.heads rect:hover, .heads .chosen { stroke: #d55e00; stroke-width: 2; }
.curves { overflow-x: auto; }
.curves svg { width: 100%; min-width: 36rem; max-width: 56rem; height: auto; }
.curves figcaption { margin: 0; color: var(--ink); }
.curves text { font-size: 12px; fill: var(--soft); }
.curves polyline { fill: none; stroke-width: 2; }
.curves line { stroke-width: 2; }
.curves .grid { stroke: var(--line); stroke-width: 1; }
.curves .hover { fill: transparent; }
.curves circle { opacity: 0; }
.curves g:hover circle { opacity: 1; }
.curves g:hover .hover { fill: #0072b2; fill-opacity: .08; }
.line0 { stroke: #000; } .line1 { stroke: #0072b2; stroke-dasharray: 7 3; } .line2 { stroke: #d55e00; stroke-dasharray: 2 2; }
.line3 { stroke: #009e73; stroke-dasharray: 9 3 2 3; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); padding: .8rem; font-size: .82rem; }
@media (max-width: 40rem) { body { padding: .8rem; font-size: 15px; } h1 { font-size: 1.35rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .table { overflow: visible; } a { color: inherit; } }
"""
)


def page(
    title: str,
    headline: str,
    sections: Sequence[Section],
    images: Mapping[str, bytes],
    settings: Mapping[str, Any],
    name: str = "",
) -> str:
    """The page as text. `images` are PNG files by the names that pictures use; `settings` are shown exactly, at the end. `name` is
    the JSON beside the page, to link to it and to the PDF of each figure; nothing is linked without it."""
    titles = [*(section.title for section in sections), "Settings"]
    links = "\n".join(
        f'<li><a href="#section-{i}">{_text(text)}</a></li>' for i, text in enumerate(titles, 1)
    )
    bodies = [
        _section(i, section.title, [_block(block, images, bool(name)) for block in section.blocks])
        for i, section in enumerate(sections, 1)
    ]
    exact = json.dumps(settings, indent=2, ensure_ascii=False)
    bodies.append(_section(len(titles), "Settings", [f"<pre>{_text(exact)}</pre>"]))
    content = "\n".join(bodies)
    script = f"\n<script>{CONTENT}</script>" if _moves(sections) else ""
    policy = f"default-src 'none'; img-src data:; style-src {source_hash(_CSS)}; script-src {source_hash(CONTENT)}; base-uri 'none'; form-action 'none'"
    if name:
        links += f'\n<li><a href="{_text(name)}.json">Numbers (JSON)</a></li>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="{policy}"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{_text(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<p class="headline">{_text(headline)}</p>
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{content}
</main>{script}
</body>
</html>
"""


def _moves(sections: Sequence[Section]) -> bool:
    """Whether there is anything for the script to do."""
    return any(
        isinstance(block, TokenView) or (isinstance(block, Table) and len(block.rows) > FOLD)
        for section in sections
        for block in section.blocks
    )


def _section(index: int, title: str, blocks: list[str]) -> str:
    content = "\n".join(blocks)
    return f'<section id="section-{index}">\n<h2>{_text(title)}</h2>\n{content}\n</section>'


def _block(
    block: str | Table | Picture | Link | Curves | TokenView,
    images: Mapping[str, bytes],
    linked: bool,
) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Curves | TokenView):
        return block.html()
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Link):
        return _link(block)
    caption, data = _text(block.caption), base64.b64encode(images[block.figure]).decode()
    name = _text(block.figure)
    pdf = f' <a href="figures/{name}.pdf">PDF</a>' if linked else ""
    return (
        f'<figure id="figure-{name}">\n<img src="data:image/png;base64,{data}" alt="{caption}"/>\n'
        f"<figcaption>{caption}{pdf}</figcaption>\n</figure>"
    )


def _link(link: Link) -> str:
    text, picture = _text(link.text), ""
    if link.picture is not None:
        data = base64.b64encode(link.picture).decode()
        picture = f'<img src="data:image/png;base64,{data}" alt=""/>'
    return f'<figure class="link">\n<a href="{_text(urllib.parse.quote(link.path))}">{picture}\n{text}</a>\n</figure>'


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_is_number(row[i]) for row in table.rows)
        for i in range(len(table.header))
    ]

    number = ' class="number"'

    def line(tag: str, cells: Sequence[str | int]) -> str:
        return "".join(
            f"<{tag}{number * right}>{_cell(cell, name)}</{tag}>"
            for cell, right, name in zip(cells, numeric, table.header, strict=True)
        )

    rows = "\n".join(f"<tr>{line('td', row)}</tr>" for row in table.rows)
    note = f'\n<p class="note">{_text(table.note)}</p>' if table.note else ""
    long = len(table.rows) > FOLD
    kind = ' class="sortable"' if long else ""
    before, after = (f"<details><summary>Table of {len(table.rows):,} rows</summary>\n", "\n</details>") if long else ("", "")  # fmt: skip
    return (
        f'{before}<div class="table"><table{kind}>\n<thead><tr>{line("th", table.header)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>{note}{after}"
    )


def _cell(value: str | int, column: str) -> str:
    if isinstance(value, int):
        return str(value) if column in NAMES else f"{value:,}"
    return _text(value)


def _is_number(value: str | int) -> bool:
    """Right-aligned: numbers, shares and their stand-ins; not lists of numbers."""
    return isinstance(value, int) or _NUMBER.fullmatch(value) is not None
