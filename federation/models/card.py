"""The card of a model: one page that says what it is for, what it came of, what it promises, and how to use it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.metrics.intervals import OF_RECORDS
from sovfed.federation.models.coefficients import NO_ERRORS
from sovfed.federation.models.usage import learns_text, usage
from sovfed.federation.privacy.statement import detection_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sovfed.federation.metrics.intervals import Interval
    from sovfed.federation.models.coefficients import Coefficient
    from sovfed.federation.models.facts import Facts, Privacy, TaskFacts
    from sovfed.federation.tasks.columns import Column

MAX_ROWS: Final = 500  # of the schema's table
LISTED: Final = 100  # institutions that are named


def to_html(
    facts: Facts, sha256: str, outside: Mapping[str, float] | None = None, *,
    within: Mapping[str, Interval] | None = None, linear: tuple[str, Sequence[Coefficient]] = ("", ()),
) -> str:  # fmt: skip
    """The page, self-contained; all text from outside is escaped. `sha256` is of `model.safetensors`.

    `outside` are metrics that a simulator measured of a private model; the page says that no ε covers them. `within`
    are 95 % intervals of the run's metrics, `linear` what the coefficients of a linear model are of, and they.
    """
    task, run = facts.task, facts.run
    targets = [column for column in task.schema.columns if column.role == "target"]
    return _PAGE.format(
        title=_safe(task.title or task.name), name=_safe(task.name), version=_safe(task.version),
        digest=_safe(task.digest), sha256=_safe(sha256), run=_safe(run.name), date=_safe(run.date),
        purpose=_purpose(targets), data=_data(facts), rows="".join(map(_row, task.schema.columns[:MAX_ROWS])),
        more="" if len(task.schema.columns) <= MAX_ROWS else f"<p>… {len(task.schema.columns)} columns in all.</p>",
        metrics=_metrics(facts, outside or {}, within or {}), linear=_linear(*linear),
        privacy=_privacy(run.privacy) + _further(run.started_from),
        parameters=f"{task.parameters:,}",
        rounds=run.rounds, strategy=_safe(run.strategy or "–"), sovfed=_safe(facts.sovfed), limits=_limits(facts),
        source=f"<p>Data: {_safe(task.citation)} {_safe(task.licence and f'({task.licence})')}</p>"
        if task.citation or task.licence else "",
        use=_use(task),
    )  # fmt: skip


def _purpose(targets: list[Column]) -> str:
    phrases = []
    for column in targets:
        if column.categories:
            phrases.append(f"<em>{_safe(column.name)}</em>, one of {_listed(column.categories)}")
        else:
            phrases.append(f"<em>{_safe(column.name)}</em>{_safe(f' in {column.unit}') if column.unit else ''}")
    return "It estimates " + " and ".join(phrases) + " of a record." if phrases else "It learns from its inputs alone."


def _data(facts: Facts) -> str:
    run = facts.run
    how = "a simulation in one process" if run.simulated else "institutions that kept their records at home"
    if not run.institutions:
        return f"Trained by {how}."
    many = f"Trained by {how}: {len(run.institutions)} took part"
    return f"{many} ({_listed(run.institutions)})." if len(run.institutions) <= LISTED else f"{many}."


def _row(column: Column) -> str:
    values = _listed(column.categories) if column.categories else _safe(f"{column.reach} {column.unit}")
    shape = f" of shape {' × '.join(map(str, column.shape))}" if column.shape else ""
    missing = "–" if column.role == "target" else "is refused" if column.missing == "refuse" else column.missing
    cells = (_safe(column.name), column.role, column.kind + shape, values, missing)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _metrics(facts: Facts, outside: Mapping[str, float], within: Mapping[str, Interval]) -> str:
    if facts.run.metrics:
        sure = f" {_safe(OF_RECORDS)}." if within else ""
        told = f"<p>On the held-out records of all institutions together.{sure}</p>"
        return told + _measured(facts.run.metrics, within)
    if outside:
        return (
            "<p><strong>As only a simulation can know it</strong>: the simulator, who holds all records, measured the "
            "final model on the held-out ones, outside of the federation. ε does not cover these figures; a deployed "
            "private run tells none.</p>" + _measured(outside)
        )
    private = "a private run tells none, since held-out records are persons' too"
    why = private if facts.run.privacy else "none given"
    return (
        f"<p>No metrics: {why}. An institution measures the model on its own held-out records with "
        "<code>sovfed client model evaluate</code>.</p>"
    )


def _measured(metrics: Mapping[str, float], within: Mapping[str, Interval] | None = None) -> str:
    rows = [f"<td>{_safe(name)}</td><td>{value:.4g}</td>" for name, value in sorted(metrics.items())]
    if not within:
        return f"<table><tr><th>Metric</th><th>Value</th></tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    spans = (f"{within[name][0]:.3g} to {within[name][1]:.3g}" if name in within else "–" for name in sorted(metrics))
    cells = "".join(f"<tr>{row}<td>{span}</td></tr>" for row, span in zip(rows, spans, strict=True))
    return f"<table><tr><th>Metric</th><th>Value</th><th>95 %</th></tr>{cells}</table>"


def _linear(what: str, lines: Sequence[Coefficient]) -> str:
    """The table of a linear model's coefficients, "" of any other's."""
    if not lines:
        return ""
    several, odds = len({line.output for line in lines}) > 1, any(line.ratio is not None for line in lines)
    heads = [*(["Of"] if several else []), "Column", "", "Coefficient", *(["Odds ratio"] if odds else [])]
    rows = []
    for line in lines[:MAX_ROWS]:
        ratio = "–" if line.ratio is None else f"{line.ratio:.4g}"
        value = (line.column, line.of, f"{line.value:.4g}", *([ratio] if odds else []))
        cells = (line.output, *value) if several else value
        rows.append("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in cells) + "</tr>")
    more = "" if len(lines) <= MAX_ROWS else f"<p>… {len(lines)} in all.</p>"
    head = "".join(f"<th>{_safe(name)}</th>" for name in heads)
    return (
        f"<h2>Its coefficients</h2><p>Of {_safe(what)}. There are {_safe(NO_ERRORS)}.</p>"
        f"<table><tr>{head}</tr>{''.join(rows)}</table>{more}"
    )


def _privacy(privacy: Privacy | None) -> str:
    if privacy is None:
        return (
            "<p class=warning><strong>Not private.</strong> The run had no differential privacy: whoever has the model "
            "may be able to tell whether a person's records were used.</p>"
        )
    if privacy.seeded:
        return "<p class=warning><strong>Not private.</strong> The noise came from a known seed.</p>"
    most = detection_rate(privacy.epsilon, privacy.delta, 0.01)
    return (
        f"<p>Differential privacy for each person: ε = {privacy.epsilon:.3f}, δ = {privacy.delta:g}, mechanism "
        f"{_safe(privacy.mechanism)}. A test that wrongly accuses 1 % of those who did not take part finds at most "
        f"{100 * most:.1f} % of those who did. The statement (<code>privacy.html</code> beside this page) says what "
        "that means and what it does not.</p>"
    )


def _further(started_from: str) -> str:
    """What a run that trained a model further promises nothing of."""
    if not started_from:
        return ""
    return (
        f"<p class=warning>It was trained further from another model, and this says nothing of the model with SHA-256 "
        f"<code>{_safe(started_from)}</code>: whoever is in that one is in this one.</p>"
    )


def _limits(facts: Facts) -> str:
    lines = [
        "It was measured on records of the institutions named here; elsewhere it may do worse. Measure first.",
        "Values outside the bounds in the table above are refused, not guessed at.",
        "It is no medical device and no decision: a person decides.",
    ]
    if facts.run.simulated:
        lines.append("It comes of a simulation, so of records that lay in one place.")
    return "".join(f"<li>{line}</li>" for line in lines)


def _use(task: TaskFacts) -> str:
    if not learns_text(task):
        return _ROWS
    if not task.text:
        return "<p>By the code of its package, which alone knows how its model writes.</p>"
    return f"<pre>{_safe(usage(task, 'model.safetensors'))}</pre>\n{_WRITES}"


def _listed(words: tuple[str, ...]) -> str:
    shown = ", ".join(map(_safe, words[:LISTED]))
    return f"{shown}, … ({len(words)} in all)" if len(words) > LISTED else shown


def _safe(text: Any) -> str:
    return html.escape(str(text))


_WRITES: Final = "<p>It writes text as it has learnt it, states no facts, and may repeat what it was trained on.</p>"
_ROWS: Final = """<pre>sovfed model predict model.safetensors patients.csv --out predictions.csv</pre>
<pre>from pathlib import Path
import pandas
from sovfed.federation.models.saved import load_model

model = load_model(Path("model.safetensors"))
frame = pandas.read_csv("patients.csv")
print(pandas.DataFrame(model.predict_rows(dict(frame))))</pre>
<p>Without sovfed: <code>sovfed model export model.safetensors --torch model.pt2</code> (or <code>--onnx</code>) writes
a program that takes raw values.</p>"""
_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Model card: {title}</title>
<style>
body {{ font: 16px/1.5 serif; max-width: 46em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #999; padding: .3em .6em; text-align: left }}
pre {{ background: #f4f4f4; padding: .6em; overflow-x: auto }}
.warning {{ border: 3px solid #b00; padding: 1em }}
</style>
<h1>{title}</h1>
<p>Task: {name}, version {version}<br>Run: {run}<br>Date: {date}<br>SHA-256 of model.safetensors:
<code>{sha256}</code><br>
Digest of the task: <code>{digest}</code></p>
<h2>What it is for</h2>
<p>{purpose} It has {parameters} trained values.</p>
<h2>What it came of</h2>
<p>{data} {rounds} rounds, strategy {strategy}, sovfed {sovfed}.</p>
{source}
<h2>How good it is</h2>
{metrics}
{linear}
<h2>What it promises the persons in the records</h2>
{privacy}
<h2>What it is given</h2>
<table>
<tr><th>Column</th><th>Role</th><th>Kind</th><th>Values</th><th>If missing</th></tr>
{rows}
</table>
{more}
<h2>How to use it</h2>
{use}
<h2>How to check where it comes from</h2>
<pre>sovfed verify FILE.release --root root.pem</pre>
<p>A release is one file that holds this page and the model. The authority's root certificate is all that is needed to
tell who signed it, which institutions took part in which rounds by a log that they have cosigned, and what is missing.
A model that came without a release is as good as the word of who gave it.</p>
<h2>Limits</h2>
<ul>{limits}</ul>
</html>
"""
