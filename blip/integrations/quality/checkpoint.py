"""How Great Expectations is asked: one checkpoint over queries that the database answers."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, func, select

from blip.errors import IntegrationError
from blip.integrations.catalog.tables import Caption, Entry, Image, Record, VersionShard
from blip.integrations.quality.rules import COUNT, DISTINCT, MEAN, Rule, Subject, number

RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": 10,  # failing rows shown of each expectation
    "unexpected_index_column_names": ["id"],
}
DIGITS = 6  # of an observed number: databases differ in the last ones of a mean


@dataclass(frozen=True)
class Finding:
    """What was observed of a rule on a version."""

    subject: Subject
    rule: Rule
    success: bool
    observed: float | None  # failing rows, or the count, share or mean itself; None: not compared
    rows: int | None  # looked at, where rows are judged
    examples: tuple[Mapping[str, Any], ...]  # some failing rows

    @property
    def words(self) -> str:
        """What was observed, in words."""
        if self.observed is None:
            return "nothing to compare with"
        if self.rows is None:
            return number(self.observed)
        return f"{number(self.observed)} failing of {self.rows:,} rows"

    def as_json(self) -> dict[str, Any]:
        """Give the line of `result.json`: the same for equal data, whichever database it was."""
        return {
            "dataset": self.subject.name,
            "version": self.subject.digest,
            "expectation": self.rule.name,
            "says": self.rule.says,
            "limit": self.rule.limit,
            "observed": self.observed,
            "rows": self.rows,
            "success": self.success,
        }


def check(engine: Engine, rules: Sequence[tuple[Subject, list[Rule]]]) -> list[Finding]:
    """Ask Great Expectations about every version; give what it found, in the order of the rules.

    Nothing is left behind: the context lives in memory, the rows stay in the database.

    Raises:
        IntegrationError: An expectation cannot be evaluated.
    """
    results = _run(engine, rules)
    return [
        _finding(subject, rule, results.get((subject.id, rule.name)))
        for subject, wanted in rules
        for rule in wanted
    ]


def _run(engine: Engine, rules: Sequence[tuple[Subject, list[Rule]]]) -> dict[tuple[int, str], Any]:
    """Run one checkpoint; give the results by version and rule. The import takes seconds."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have a class of its own for each database
        source = context.data_sources.add_sql(
            "catalogue", connection_string=engine.url.render_as_string(hide_password=False)
        )
    try:
        validations = []
        for subject, wanted in rules:
            for table, query in (("images", _images(subject.id)), ("texts", _texts(subject.id))):
                name = f"{subject.id} {table}"
                asset = source.add_query_asset(name, query=_sql(engine, query))
                batch = asset.add_batch_definition_whole_table("all")
                suite = gx.ExpectationSuite(
                    name=name,
                    expectations=[
                        _expectation(gx, subject, rule)
                        for rule in wanted
                        if rule.table == table and rule.arguments is not None
                    ],
                )
                validation = gx.ValidationDefinition(
                    name=name, data=batch, suite=context.suites.add(suite)
                )
                validations.append(context.validation_definitions.add(validation))
        checkpoint = gx.Checkpoint(
            name="gate", validation_definitions=validations, result_format=RESULT_FORMAT
        )
        outcome = context.checkpoints.add(checkpoint).run()
    finally:
        source.get_execution_engine().close()
        source.get_engine().dispose()
    results: list[Any] = [r for run in outcome.run_results.values() for r in run.results]
    metas = [result.expectation_config.meta for result in results]
    return {(m["version"], m["rule"]): r for m, r in zip(metas, results, strict=True)}


def _expectation(gx: Any, subject: Subject, rule: Rule) -> Any:
    kind = getattr(gx.expectations, rule.expectation)
    return kind(**(rule.arguments or {}), meta={"version": subject.id, "rule": rule.name})


def _finding(subject: Subject, rule: Rule, result: Any) -> Finding:
    if result is None:
        return Finding(subject, rule, True, None, None, ())
    _check_evaluated(rule, result.exception_info)
    found = result.result
    if rule.expectation in (COUNT, DISTINCT, MEAN):
        value = found.get("observed_value")
        observed = None if value is None else round(float(value), DIGITS)
        return Finding(subject, rule, bool(result.success), observed, None, ())
    return Finding(
        subject,
        rule,
        bool(result.success),
        found["unexpected_count"],
        found["element_count"],
        tuple(found.get("partial_unexpected_index_list") or ()),
    )


def _check_evaluated(rule: Rule, info: Mapping[str, Any]) -> None:
    """Tell an expectation that could not be evaluated from one that fails."""
    for raised in (info, *(value for value in info.values() if isinstance(value, Mapping))):
        if raised.get("raised_exception"):
            reason = " ".join(str(raised.get("exception_message")).split())
            raise IntegrationError(f"Great Expectations cannot evaluate {rule.name}: {reason}")


def _texts(version: int) -> Select[*tuple[Any, ...]]:
    """Give the texts of a version: `image` is null where the version lacks it, blank is null."""
    return (
        select(
            Entry.caption_id.label("id"),
            func.nullif(Caption.key, "").label("key"),
            func.nullif(func.trim(Caption.text), "").label("text"),
            func.length(Caption.text).label("characters"),
            Caption.origin,
            select(func.min(Record.key))
            .where(Record.key == Caption.key, Record.shard_id.in_(_image_shards(version)))
            .scalar_subquery()
            .label("image"),
        )
        .select_from(VersionShard)
        .join(Entry, Entry.shard_id == VersionShard.caption_shard_id)
        .join(Caption, Caption.caption_id == Entry.caption_id)
        .where(VersionShard.version_id == version)
    )


def _images(version: int) -> Select[*tuple[Any, ...]]:
    """Give the images of a version with the number of their texts there."""
    texts = (
        select(Caption.key, func.count().label("captions"))
        .join(Entry, Entry.caption_id == Caption.caption_id)
        .join(VersionShard, VersionShard.caption_shard_id == Entry.shard_id)
        .where(VersionShard.version_id == version)
        .group_by(Caption.key)
        .subquery()
    )
    return (
        select(
            Record.source.label("id"),
            Record.key,
            Image.width,
            Image.height,
            func.coalesce(texts.c.captions, 0).label("captions"),
        )
        .join(Image, Image.key == Record.key)
        .outerjoin(texts, texts.c.key == Record.key)
        .where(Record.shard_id.in_(_image_shards(version)))
    )


def _image_shards(version: int) -> Select[int]:
    return select(VersionShard.image_shard_id).where(VersionShard.version_id == version)


def _sql(engine: Engine, query: Select[*tuple[Any, ...]]) -> str:
    return str(query.compile(engine, compile_kwargs={"literal_binds": True}))
