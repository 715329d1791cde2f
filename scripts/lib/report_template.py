"""The look of a report: style sheet and Jinja templates; all values are escaped by the engine."""

import re

STYLE = """
:root { color-scheme: light dark;
  --paper:#fbfbf9; --card:#ffffff; --ink:#1c1f23; --muted:#5c636b; --grid:#dcdedc; --line:#e2e4e1;
  --good:#12704a; --bad:#a8231c; --accent:#0b5fa5;
  --s0:#0b5fa5; --s1:#c2500f; --s2:#12704a; --s3:#8141a0; --s4:#8a6a00; --s5:#b0306a; --s6:#007a86;
  --s7:#59626b; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {
  --paper:#14171a; --card:#1c2024; --ink:#e8eaec; --muted:#a3abb3; --grid:#343a40; --line:#2e3439;
  --good:#5ccf9b; --bad:#ff8a80; --accent:#74b6f2;
  --s0:#74b6f2; --s1:#ff9d66; --s2:#5ccf9b; --s3:#cf9bea; --s4:#e0c050; --s5:#f58bb8; --s6:#5fd0da;
  --s7:#b4bcc4; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width:1020px; margin:0 auto; padding:2rem 1.25rem 4rem; }
h1 { font-size:1.7rem; line-height:1.2; margin:0; }
h2 { font-size:1.2rem; margin:2.6rem 0 .8rem; padding-top:.9rem; border-top:1px solid var(--line); }
h3 { font-size:.95rem; margin:1rem 0 .3rem; color:var(--muted); font-weight:600; }
p { margin:.4rem 0 .8rem; max-width:46rem; }
.muted, figcaption, .sub { color:var(--muted); font-size:.88rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(200px,1fr)); gap:.8rem;
  margin:1.4rem 0 0; padding:0; list-style:none; }
.tile { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.9rem 1rem; }
.tile b { display:block; font-size:1.75rem; line-height:1.25; font-weight:650;
  font-variant-numeric:tabular-nums; }
.good { color:var(--good); } .bad { color:var(--bad); }
.banner { border:1px solid var(--bad); border-left-width:6px; border-radius:8px; margin:1.2rem 0;
  padding:.7rem 1rem; background:var(--card); }
.wide { overflow-x:auto; margin:.4rem 0 1rem; }
table { border-collapse:collapse; width:100%; font-size:.92rem; }
th, td { text-align:left; padding:.4rem .7rem .4rem 0; border-bottom:1px solid var(--line);
  vertical-align:top; overflow-wrap:anywhere; }
thead th { color:var(--muted); font-weight:600; font-size:.82rem; white-space:nowrap; }
tbody th { font-weight:500; }
.wide table:has(td.n) tbody th { min-width:9rem; overflow-wrap:break-word; }
.facts th { width:16rem; color:var(--muted); }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
tr.main th, tr.main td { font-weight:700; }
tr.break th, tr.break td { border-top:2px solid var(--grid); }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px;
  padding:.8rem; min-width:0; break-inside:avoid; }
.plots { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr)); gap:.8rem; }
svg.plot { width:100%; height:auto; max-width:620px; display:block; margin:0 auto; }
svg.plot * { stroke-linejoin:round; stroke-linecap:butt; }
svg.plot text { font-family:inherit !important; }
pre, code { font-family:ui-monospace, "SFMono-Regular", Menlo, Consolas, "Liberation Mono", monospace; }
pre { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.7rem .8rem;
  white-space:pre-wrap; overflow-wrap:anywhere; font-size:.82rem; line-height:1.45; margin:.3rem 0; }
.sample { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr)); gap:.8rem; }
.bar { background:var(--grid); border-radius:4px; height:.7rem; min-width:6rem; overflow:hidden; }
.bar i { display:block; height:100%; background:var(--s0); }
summary { cursor:pointer; color:var(--accent); margin:.6rem 0; }
a { color:var(--accent); }
@media (max-width:560px) { main { padding:1.2rem .8rem 3rem; } .facts th { width:9rem; }
  .tiles { grid-template-columns:1fr 1fr; } .tile b { font-size:1.35rem; } figure { padding:.4rem; } }
@media print { :root { --paper:#fff; --card:#fff; } body { font-size:10.5pt; }
  main { max-width:none; padding:0; } h2 { break-after:avoid; } .tile, tr, .sample { break-inside:avoid; }
  details::details-content { content-visibility:visible; display:block; } summary, .every { display:none; }
  .tiles { grid-template-columns:repeat(4,1fr); } td, th { padding-block:.15rem; }
  svg.plot { max-height:11cm; } .wide { overflow:visible; } }
"""


def palette(*, dark: bool) -> dict[str, str]:
    """The colours of one theme by name, for pictures that stand outside a page.

    >>> palette(dark=False)["card"]
    '#ffffff'
    """
    theme = STYLE.split("prefers-color-scheme: dark")[int(dark)]
    return dict(re.findall(r"--(\w+):(#\w+);", theme.split("* {")[0]))


MACROS = """
{% macro facts(rows, caption) %}<div class="wide"><table class="facts"><caption hidden>{{ caption }}
</caption><tbody>{% for name, value in rows %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</tbody></table></div>
{% endmacro %}
{% macro grid(table) %}<div class="wide" tabindex="0" role="region" aria-label="{{ table.caption }}">
<table><caption hidden>{{ table.caption }}</caption><thead><tr>{% for head in table.head %}
<th scope="col"{% if not loop.first and table.numbers %} class="n"{% endif %}>{{ head }}</th>
{% endfor %}</tr></thead><tbody>{% for row in table.rows %}
<tr class="{{ row.kind }}">{% for cell in row.cells %}{% if loop.first %}<th scope="row">{{ cell }}</th>
{% else %}<td{% if table.numbers %} class="n"{% endif %}>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endmacro %}
{% macro plots(figures) %}<div class="plots">{% for figure in figures %}
<figure>{{ figure.svg }}<figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}</div>
{% endmacro %}
{% macro tiles(items) %}<ul class="tiles">{% for tile in items %}
<li class="tile"><span class="sub">{{ tile.label }}</span><b class="{{ tile.mood }}">{{ tile.value }}</b>
<span class="sub">{{ tile.note }}</span></li>{% endfor %}</ul>{% endmacro %}
"""

SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title><style>{{ style }}</style></head><body><main>
{% block body required %}{% endblock %}
</main></body></html>
"""

PAGE = """{% extends "shell" %}{% import "macros" as m %}{% block body %}
<header><h1>{{ title }}</h1><p class="muted">{{ subtitle }}</p></header>
{% if failure %}<div class="banner" role="alert"><strong class="bad">{{ failure.title }}</strong>
<pre>{{ failure.text }}</pre><p class="muted">{{ failure.note }}</p></div>{% endif %}
{{ m.tiles(tiles) }}
{% if notes %}<h2>Notes</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
<h2>What was asked</h2>
{% if asked %}{{ m.facts(asked, "Main settings of the run") }}{% else %}<p class="muted">
The run recorded no settings.</p>{% endif %}
{% if every_setting %}<details class="every"><summary>Every setting</summary>
{{ m.facts(every_setting, "Every setting of the run") }}</details>{% endif %}
<h2>What came out</h2>
{{ m.grid(results) }}<p class="muted">{{ results_note }}</p>
{% if size_figures %}{{ m.plots(size_figures) }}{% endif %}
<h2>Loss curves</h2>
{% if curves %}{{ m.plots(curves) }}{% else %}<p class="muted">No curve was logged.</p>{% endif %}
{% if left_out %}<p class="muted">{{ left_out }}</p>{% endif %}
{% if curve_table %}<details><summary>First, last and least value of each term</summary>
{{ m.grid(curve_table) }}</details>{% endif %}
{% if layers %}<h2>Layers</h2><p>{{ layers.text }}</p>{{ m.plots(layers.figures) }}
<details><summary>The figures</summary>{{ m.grid(layers.table) }}</details>{% endif %}
{% if paths %}<h2>Which path the router chose</h2><div class="wide"><table><caption hidden>Share of
sequences a path</caption><thead><tr><th scope="col">path</th><th scope="col" class="n">share</th>
<th scope="col"><span class="muted">of all sequences</span></th></tr></thead><tbody>
{% for path in paths %}<tr><th scope="row">{{ path.name }}</th><td class="n">{{ path.text }}</td>
<td><div class="bar"><i style="width:{{ path.width }}%"></i></div></td></tr>{% endfor %}
</tbody></table></div>{% endif %}
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.figures %}{{ m.plots(section.figures) }}{% endif %}
{% if section.grid %}{{ m.grid(section.grid) }}{% endif %}
{% if section.facts %}{{ m.facts(section.facts, section.title) }}{% endif %}{% endfor %}
{% if samples %}<h2>What they write</h2>{% for sample in samples %}
<h3>After the prompt</h3><pre>{{ sample.prompt }}</pre><div class="sample">{% for name, text in sample.texts %}
<div><h3>{{ name }}</h3><pre>{{ text }}</pre></div>{% endfor %}</div>{% endfor %}{% endif %}
<h2>Environment and command</h2>
{% if environment %}{{ m.facts(environment, "Environment") }}{% endif %}
<pre aria-label="The exact command">{{ command }}</pre>
{% endblock %}"""

COMPARISON = """{% extends "shell" %}{% import "macros" as m %}{% block body %}
<header><h1>{{ title }}</h1><p class="muted">{{ subtitle }}</p></header>
{% for warning in warnings %}<div class="banner" role="alert">{{ warning }}</div>{% endfor %}
<h2>What came out</h2>{{ m.grid(results) }}<p class="muted">{{ results_note }}</p>
{% if figures %}{{ m.plots(figures) }}{% endif %}
{% if differences %}<h2>Where the settings differ</h2>{{ m.grid(differences) }}{% endif %}
<h2>Commands</h2>{% for name, command in commands %}<h3>{{ name }}</h3><pre>{{ command }}</pre>{% endfor %}
{% endblock %}"""
