"""The page of ``report.html`` (Jinja). A string in a module: it travels with any installation."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2933; --soft: #5b6773; --line: #e2e7ee; --right: #2f855a; --wrong: #c53030; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 80px; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 28px; margin: 0 0 8px; }
h2 { font-size: 21px; margin: 44px 0 10px; padding-bottom: 6px;
  border-bottom: 2px solid var(--line); }
h3 { font-size: 17px; margin: 28px 0 8px; }
p.note { background: #fff8e6; border-left: 4px solid #e0a825; padding: 8px 14px; margin: 8px 0; }
img.chart { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
th { color: var(--soft); font-weight: 600; }
.soft { color: var(--soft); }
.ok { color: var(--right); font-weight: 600; }
.bad { color: var(--wrong); font-weight: 600; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 14px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px; font-size: 13px; }
.card img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block; }
.card p { margin: 6px 0 0; overflow-wrap: anywhere; }
details pre { background: #f6f8fa; padding: 12px; overflow-x: auto; font-size: 12.5px; }
"""
"""Of every page that the project draws, so that they look alike."""

TEMPLATE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
<h2>Results on held-out data</h2>
{% if labels %}
<img class="chart" alt="accuracy and loss after each stage"
  src="data:image/png;base64,{{ results_png }}">
<div class="wide"><table>
<tr><th>measure</th>{% for label in labels %}<th>after {{ label }}</th>{% endfor %}
<th class="words"></th></tr>
{% for row in result_rows %}<tr><td>{{ row.measure }}</td>
{%- for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}
<td class="words soft">{{ row.note }}</td></tr>
{% endfor %}</table></div>
<p class="soft">In brackets: the same model asked the same with every picture blanked. What it
scores blind it owes to the words alone; only the difference is sight.</p>
{% else %}<p class="soft">Nothing evaluated yet.</p>{% endif %}

{% if samples %}<h2>What the model says</h2>
<div class="gallery">
{% for sample in samples %}<div class="card">
<img alt="{{ sample.key }}" src="data:image/png;base64,{{ sample.image_png }}">
<p>{{ sample.question }}</p>
<p class="{{ 'ok' if sample.is_right else 'bad' }}">{{ sample.answer or '(nothing)' }}
{%- if sample.boxes %} (IoU {{ '%.2f' % sample.boxes.iou }}){% endif %}</p>
{% if not sample.is_right %}<p class="soft">expected: {{ sample.expected }}</p>{% endif %}
{% if sample.blank_answer is not none %}
<p class="soft">blanked: {{ sample.blank_answer or '(nothing)' }}</p>{% endif %}
<p class="soft">{{ sample.source }} {{ sample.key }}</p>
</div>
{% endfor %}</div>{% endif %}

<h2>Stages</h2>
{% for run in runs %}
{% if run.rows or run.summary %}
<h3>{{ run.name }}{% if run.stage != run.name %}: {{ run.stage }}{% endif %}</h3>
{% if run.summary %}<p class="soft">Started from {{ run.summary.init_from }}.</p>
{% for note in run.summary.notes %}<p class="note">{{ note }}</p>{% endfor %}{% endif %}
{% if run.chart %}<img class="chart" alt="loss and language share of {{ run.name }}"
  src="data:image/png;base64,{{ run.chart }}">{% endif %}
{% if run.rows %}<div class="wide"><table>
<tr><th>tokens</th><th>planned</th><th>realised</th><th>of them targets</th></tr>
{% for modality in ('language', 'multimodal') %}<tr><td>{{ modality }}</td>
<td>{{ '{:,}'.format(run.totals.planned[modality]) }}</td>
<td>{{ '{:,}'.format(run.totals.realised[modality]) }}</td>
<td>{{ '{:,}'.format(run.totals.supervised[modality]) }}</td></tr>
{% endfor %}<tr><td>language share</td><td>{{ '%.2f' % (100 * run.totals.planned_share) }} %</td>
<td>{{ '%.2f' % (100 * run.totals.realised_share) }} %</td><td></td></tr></table></div>
<p class="soft">{{ run.rows | length }} steps in {{ run.totals.seconds | clock }}; loss
{{ '%.3f' % run.first_loss if run.first_loss is not none else '-' }} at the start,
{{ '%.3f' % run.last_loss if run.last_loss is not none else '-' }} at the end;
{{ run.totals.images }} images;
{{ run.totals.holes }} bad records; {{ run.totals.skipped_steps }} steps skipped
{%- if run.totals.useful_share is not none %};
{{ '%.1f' % (100 * run.totals.useful_share) }} % of the computed places held a token{% endif %}
{%- if run.totals.mfu is not none %}; MFU {{ '%.1f' % (100 * run.totals.mfu) }} %{% endif %}.</p>
{%- endif %}
{% if run.summary %}<div class="wide"><table>
<tr><th>part</th><th>parameters</th><th>trained</th><th>frozen tensors</th>
<th class="words">frozen tensors unchanged, by digest</th></tr>
{% for part in run.summary.parts %}<tr><td>{{ part.part }}</td>
<td>{{ '{:,}'.format(part.parameters) }}</td><td>{{ '{:,}'.format(part.trainable) }}</td>
<td>{{ part.frozen_tensors }}</td>
<td class="words">{% if part.is_frozen_unchanged is none %}<span class="soft">
{{- 'nothing frozen' if not part.frozen_tensors else 'not proved' }}</span>
{%- elif part.is_frozen_unchanged %}<span class="ok">unchanged</span>
<span class="soft">{{ (part.frozen_digest_after or '')[:16] }}</span>
{%- else %}<span class="bad">CHANGED</span>{% endif %}</td></tr>
{% endfor %}</table></div>
<details><summary>Tensors that trained</summary><pre>
{%- for part in run.summary.parts %}{% for name in part.trained_tensors %}{{ name }}
{% endfor %}{% endfor %}</pre></details>{% endif %}
{% if run.config %}<details><summary>Config</summary>
<pre>{{ run.config }}</pre></details>{% endif %}
{% endif %}
{% endfor %}

{% if cards %}<h2>Data</h2>
<div class="wide"><table>
<tr><th>name</th><th class="words">source</th><th class="words">licence</th>
<th class="words">attribution</th></tr>
{% for card in cards %}<tr><td>{{ card.name }}</td>
<td class="words">{{ card.source }}{% if card.synthetic %} (synthetic){% endif %}</td>
<td class="words">{{ card.licence }}</td><td class="words">{{ card.attribution }}</td></tr>
{% endfor %}</table></div>{% endif %}
</body>
</html>
"""
)
