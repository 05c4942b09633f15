"""The frame of the report: style, its script, and the policy that forbids the page to fetch anything."""

from __future__ import annotations

import base64
import hashlib
from html import escape

STYLE = """
:root { color-scheme: light dark; --bg:#fbfaf7; --card:#ffffff; --ink:#1d1f21; --soft:#6a6e73; --line:#e4e1da;
  --accent:#b4541f; --held:#1668b8; --good:#2c8a4b; --warn:#b97a00; --bad:#c0362c; --shade:0 1px 3px rgba(0,0,0,.06); }
@media (prefers-color-scheme: dark) { :root { --bg:#15171a; --card:#1d2024; --ink:#e9e7e2; --soft:#9a9ea4;
  --line:#30343a; --accent:#ee8e54; --held:#62aef2; --good:#5cc27e; --warn:#e2a93b; --bad:#ee6a5f; --shade:none; } }
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; -webkit-font-smoothing:antialiased }
main { max-width:1040px; margin:0 auto; padding:40px 24px 72px }
header h1 { font-size:34px; line-height:1.15; margin:0 0 6px; letter-spacing:-.02em; overflow-wrap:anywhere }
header p { color:var(--soft); margin:0; overflow-wrap:anywhere }
h2 { font-size:21px; margin:52px 0 14px; letter-spacing:-.01em }
.note { color:var(--soft); margin:-6px 0 14px; max-width:70ch }
.hero { margin:26px 0 0; border-radius:14px; overflow:hidden; border:1px solid var(--line);
  display:flex; justify-content:center }
.hero.light { background:#fff } .hero.dark { background:#000 }
.hero video { max-width:100%; height:min(440px,74vw); display:block; object-fit:contain }
.cards { display:grid; grid-template-columns:repeat(4,1fr); gap:12px; margin:26px 0 0 }
@media (max-width:640px) { .cards { grid-template-columns:1fr 1fr } }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:13px 14px;
  box-shadow:var(--shade) }
.card b { display:block; font-size:24px; line-height:1.2; letter-spacing:-.02em; font-weight:650;
  font-variant-numeric:tabular-nums }
.card span { color:var(--soft); font-size:13px; line-height:1.35; display:block; margin-top:3px }
ul.plain { list-style:none; padding:0; margin:0 }
ul.plain li { padding:9px 0 9px 26px; border-top:1px solid var(--line); position:relative; overflow-wrap:anywhere }
ul.plain li:first-child { border-top:0 }
ul.plain li::before { content:""; position:absolute; left:4px; top:16px; width:10px; height:10px; border-radius:50%;
  background:var(--line) }
li.good::before { background:var(--good)!important } li.warn::before { background:var(--warn)!important }
li.bad::before { background:var(--bad)!important }
li b { font-weight:600; text-transform:capitalize }
.grid2 { display:grid; grid-template-columns:repeat(auto-fit,minmax(300px,1fr)); gap:14px }
figure { margin:0 }
.plot { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:12px 14px;
  box-shadow:var(--shade) }
.plot figcaption { font-size:14px; font-weight:600; margin-bottom:4px }
.plot svg { width:100%; height:auto; display:block }
.grid { stroke:var(--line); stroke-width:1; fill:none } .tick { fill:var(--soft); font-size:12px }
.line { fill:none; stroke:var(--accent); stroke-width:2; stroke-linejoin:round } .dot { fill:var(--accent) }
.cam { fill:none; stroke:var(--accent); stroke-width:1.3 } .held { fill:none; stroke:var(--held); stroke-width:1.8 }
.key i { display:inline-block; width:11px; height:11px; border-radius:3px; margin:0 6px 0 14px; vertical-align:-1px }
.views { display:grid; grid-template-columns:1fr 1fr; gap:14px }
.view { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:12px; box-shadow:var(--shade);
  min-width:0 } .view.wide { grid-column:1/-1 }
@media (max-width:760px) { .views { grid-template-columns:1fr } }
.view p { margin:0 0 8px; font-size:14px; display:flex; gap:14px; flex-wrap:wrap }
.view p b { overflow-wrap:anywhere } .view p span { color:var(--soft); font-variant-numeric:tabular-nums }
.pair { display:grid; grid-template-columns:2fr 1fr; gap:10px; align-items:start }
@media (max-width:640px) { .pair { grid-template-columns:1fr } }
.slider { position:relative; overflow:hidden; border-radius:8px; line-height:0; --cut:50% }
.slider img, .pair > figure img { width:100%; height:auto; display:block; border-radius:8px }
.slider .over { position:absolute; inset:0; clip-path:inset(0 0 0 var(--cut)) }
.slider::after { content:""; position:absolute; top:0; bottom:0; left:var(--cut); width:2px; margin-left:-1px;
  background:#fff; box-shadow:0 0 4px rgba(0,0,0,.6); pointer-events:none }
.slider input { position:absolute; inset:0; width:100%; height:100%; margin:0; opacity:0; cursor:ew-resize }
.slider input:focus-visible + .tag { outline:2px solid var(--held) }
.tag { position:absolute; bottom:8px; font-size:12px; line-height:1; padding:5px 8px; border-radius:6px; color:#fff;
  background:rgba(0,0,0,.55); pointer-events:none } .tag.left { left:8px } .tag.right { right:8px }
.pair figcaption { font-size:12.5px; color:var(--soft); margin-top:5px; line-height:1.4 }
table { border-collapse:collapse; width:100%; font-size:15px } td, th { text-align:left; padding:7px 10px 7px 0;
  border-top:1px solid var(--line); vertical-align:top; overflow-wrap:anywhere }
tr:first-child td, tr:first-child th { border-top:0 } th { font-weight:500; color:var(--soft); width:38% }
td { font-variant-numeric:tabular-nums }
.bar { display:flex; height:14px; border-radius:7px; overflow:hidden; margin:0 0 14px; background:var(--line) }
.bar i { display:block; height:100% }
.swatch { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:9px; vertical-align:-1px }
details { border-top:1px solid var(--line); padding:10px 0 } summary { cursor:pointer; font-weight:600 }
details table { margin-top:8px; font-size:14px }
a { color:var(--held) } code { font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
footer { color:var(--soft); font-size:13.5px; margin-top:56px; border-top:1px solid var(--line); padding-top:16px }
@media print { .view, .plot, .card { break-inside:avoid } details { display:block } }
"""

SCRIPT = """
for (const slider of document.querySelectorAll('.slider')) {
  const input = slider.querySelector('input');
  const move = () => slider.style.setProperty('--cut', input.value + '%');
  input.addEventListener('input', move);
  move();
}
"""


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole HTML document. The policy lets it show what it carries, run our scripts and fetch nothing.

    style, script: of a viewer in the body, which may have threads of its own.
    """
    scripts = [part for part in (SCRIPT, script) if part]
    allowed = policy(*scripts, threads=bool(script))
    elements = "\n".join(f"<script>{part}</script>" for part in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(allowed)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"{elements}\n</body>\n</html>\n"
    )


def policy(*scripts: str, threads: bool = False) -> str:
    """A content security policy under which a page runs these scripts, shows what it carries and fetches nothing.

    threads: whether the scripts may start workers from code that they hold themselves.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    workers = "worker-src blob:; " if threads else ""
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; {workers}"
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing when the body is empty."""
    if not body:
        return ""
    return f"<section><h2>{escape(title)}</h2>" + (f'<p class="note">{note}</p>' if note else "") + f"{body}</section>"


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns of text; escapes both."""
    return "<table>" + "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows) + "</table>"


def data_uri(content: bytes, kind: str) -> str:
    """Content as a URI that carries it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
