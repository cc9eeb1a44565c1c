"""Tables of figures, as json for programs and as markdown for people."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e4e_core.metrics.statistics import Estimate

Table = list[dict[str, Any]]  # rows; the keys of the first are the columns, cells are Estimates, numbers or text


def to_markdown(tables: Mapping[str, Table]) -> str:
    """Every table under its title; an estimate reads `value (low … high)`."""
    return "\n".join(f"## {title}\n\n{table_lines(rows)}\n" for title, rows in tables.items() if rows)


def table_lines(rows: Table) -> str:
    """One markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(tables: Mapping[str, Table], folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """`name`.json with everything and `name`.md to read; `about` says what was measured, and how."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": dict(about), **tables}
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    head = "\n".join(f"- {key}: {value}" for key, value in about.items())
    (folder / f"{name}.md").write_text(f"# Measured\n\n{head}\n\n{to_markdown(tables)}", encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Only what json has: figures that could not be measured become null."""
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
