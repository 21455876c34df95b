"""What the pages share: their style, sections, figures and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --blue: #3b7dc4; --green: #2a9d78; --red: #c8453b; --orange: #d9822b;
  --ink: #1f2933; --faint: #66717e; --line: #e1e5ea; --paper: #f6f7f8; --panel: #ffffff; --code: #f1f3f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #98a2ae; --line: #2e353d; --paper: #14171b; --panel: #1b1f24; --code: #252b32; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 2.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15.5px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { margin: 0 auto; max-width: 58rem; }
h1 { font-size: 1.75rem; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); font-size: .9em; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: .7rem; padding: 1.3rem 1.5rem;
  margin: 1.1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: .7rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: .85rem; }
.warning { border-left: .3rem solid var(--orange); border-radius: .3rem; background: var(--panel);
  padding: .6rem 1rem; }
figure { margin: .6rem 0; } svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
figcaption { color: var(--faint); font-size: .9em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95em; }
th, td { padding: .32rem 1rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--faint); }
.journal td { text-align: left; vertical-align: top; } .journal td:last-child { white-space: normal; width: 100%; }
.rollback, .stop { color: var(--red); } .recovery { color: var(--green); } .cut { color: var(--orange); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--faint); }
pre { background: var(--code); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: .4rem; }
code { background: var(--code); padding: .1rem .3rem; border-radius: .2rem; overflow-wrap: anywhere; }
@media print { body { padding: 0; } section { break-inside: avoid; } }
"""


def section(title: str, body: str) -> str:
    """A panel with a heading; ``body`` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def figure_block(svg: str, caption: str = "") -> str:
    """A drawing with its caption below."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def html_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls where the window is narrow."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
