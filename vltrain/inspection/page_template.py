"""The page of inspected steps (Jinja), in the look of ``report.html``."""

from __future__ import annotations

from vltrain.evaluate.report_template import STYLE

TEMPLATE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>"""
    + STYLE
    + """
.pack { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 14px 0; }
.pack h4 { margin: 0 0 8px; font-size: 15px; }
img.strip { width: 100%; height: 16px; image-rendering: pixelated; border-radius: 3px;
  display: block; }
.piece { border-top: 1px solid var(--line); padding: 8px 0 4px; margin-top: 10px; }
.piece p { margin: 0; font-size: 13px; }
.piece .text { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); margin-top: 6px;
  font: 12.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
mark { background: #fbe3b5; color: var(--ink); border-radius: 2px; }
.picture { display: inline-block; margin: 3px 6px 3px 0; font-size: 11px; vertical-align: middle; }
.picture img { width: 96px; height: 96px; image-rendering: pixelated; border-radius: 4px;
  display: block; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin: 0 4px 0 12px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="soft">{{ about }}</p>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
<p><mark>Marked text</mark> is learned: some position must predict it. The rest is only read.
Strips, left to right along the row:
{% for name, color in colors %}<span class="key" style="background: {{ color }}"></span>{{ name }}
{% endfor %}</p>
{% for step in steps %}
<h2 id="step-{{ step.number }}">Step {{ step.number }}</h2>
<p>{{ step.heading }}</p>
{% if step.proof %}<p class="{{ 'ok' if step.proof.holds else 'bad' }}">{{ step.proof.words }}</p>
{% elif step.digest %}<p class="soft">digest {{ step.digest }}</p>{% endif %}
<div class="wide"><table>
<tr><th>source</th><th>pieces</th><th>tokens</th><th>targets</th><th>images</th></tr>
{% for s in step.shares %}<tr><td>{{ s.name }}</td><td>{{ '{:,}'.format(s.pieces) }}</td>
<td>{{ '{:,}'.format(s.tokens) }}</td><td>{{ '{:,}'.format(s.supervised) }}</td>
<td>{{ '{:,}'.format(s.images) }}</td></tr>
{% endfor %}</table></div>
<details><summary>All {{ step.rows | length }} packs: sizes and keys</summary>
<div class="wide"><table>
<tr><th>pack</th><th>pieces</th><th>tokens</th><th>fill</th><th>targets</th>
<th>images</th><th class="words">keys (source:shard:key)</th></tr>
{% for row in step.rows %}<tr><td>{{ row.number }}</td>
<td>{{ row.pieces }}</td><td>{{ '{:,}'.format(row.tokens) }}</td>
<td>{{ '%.1f %%' % (100 * row.fill) if row.fill is not none else '-' }}</td>
<td>{{ '{:,}'.format(row.supervised) }}</td><td>{{ row.images }}</td>
<td class="words soft">{% for key in row.keys %}{{ key }}<br>{% endfor %}</td></tr>
{% endfor %}</table></div></details>
{% for pack in step.packs %}
<div class="pack">
<h4>Pack {{ pack.row.number }} <span class="soft">{{ pack.row.modality }},
{{ '{:,}'.format(pack.row.tokens) }} tokens
{%- if pack.row.fill is not none %} ({{ '%.1f' % (100 * pack.row.fill) }} % full){% endif %},
{{ '{:,}'.format(pack.row.supervised) }} targets, {{ pack.row.images }} images:
{{ pack.row.sources }}</span></h4>
<img class="strip" alt="what each column of the row is"
  src="data:image/png;base64,{{ pack.strip_png }}">
{% for piece in pack.pieces %}
<div class="piece">
<p><b>{{ piece.view.origin.key }}</b> <span class="soft">{{ piece.view.origin.source }},
{{ piece.view.origin.shard }}, {{ piece.view.modality.value }}; columns
{{ piece.view.start }} to {{ piece.view.end - 1 }}, positions {{ piece.view.first_position }} to
{{ piece.view.last_position }}, segment {{ piece.view.segment }}, {{ piece.view.supervised }}
targets, {{ piece.view.images }} images</span></p>
{% if piece.view.hole %}<p class="bad">a hole: {{ piece.view.hole }}</p>
{% else %}<div class="text">
{%- for run in piece.runs %}
{%- if run.picture_png %}<span class="picture"><img alt="image {{ run.image }}"
  src="data:image/png;base64,{{ run.picture_png }}">{{ run.tokens }} tokens{{ run.tiles }}</span>
{%- elif run.is_learned %}<mark>{{ run.text }}</mark>{% else %}{{ run.text }}{% endif %}
{%- endfor %}</div>{% endif %}
</div>
{% endfor %}</div>
{% endfor %}
{% if step.more_packs %}<p class="soft">{{ '{:,}'.format(step.more_packs) }} packs more, with sizes
and keys in the list above; --packs N shows N of them in full.</p>{% endif %}
{% endfor %}
</body>
</html>
"""
)
