"""Write docs/coverage.md from what the cases come to.

`python -m tests.conformance.table` judges every case; with names or sections as arguments only those, and the other
rows stay as they are; with `--missing` those that have no row yet.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .case import LIMIT, Case, NoBuildError, NoExportError, Outcome, WrongAnswerError, judge
from .expected import NOT_EXPORTABLE, NOT_YET, SECTIONS

FILE = Path(__file__).parents[2] / "docs" / "coverage.md"
PACKAGES = ("keras", "tensorflow", "tf2onnx", "onnxruntime", "tensorrt-rtx-cu13")
HEADER = """| | export | ONNX Runtime | TensorRT-RTX | difference, or reason |
|---|---|---|---|---|
"""


class Row(NamedTuple):
    """A row: its name, and the four cells behind it."""

    name: str
    cells: list[str]

    def __str__(self) -> str:
        return f"| {self.name} | {' | '.join(self.cells)} |\n"


def names(section: str) -> list[str]:
    """Return the rows of a section, in order."""
    return sorted({*NOT_EXPORTABLE[section], *(case.name for case in SECTIONS[section][1])})


def read() -> dict[tuple[str, str], Row]:
    """Return the rows that the file holds by section and name."""
    rows, section = {}, ""
    for line in FILE.read_text().splitlines() if FILE.exists() else ():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| |"):
            name, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
            rows[section, name] = Row(name, cells)
    return rows


def row(section: str, case: Case, outcome: Outcome) -> Row:
    stages = [
        "no" if outcome.failed(NoExportError) else "yes",
        "no" if outcome.failed(WrongAnswerError) else "yes",
        "no" if outcome.failed(NoBuildError) else "yes",
    ]
    if stages[0] == "no":
        stages[1:] = ["-", "-"]
    if outcome.failures:
        _, last = NOT_YET[section].get(case.name, (None, f"unexpected: {outcome.failures[0]}"))
    else:
        last = f"{outcome.difference:.0e}" if outcome.difference else "0"
    return Row(case.name, [*stages, last.replace("|", "/").replace("\n", " ")])


def write(rows: dict[tuple[str, str], Row]) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [
        "# What of Keras runs\n\n"
        "Written by `python -m tests.conformance.table`, which takes a small model of each class and function through\n"
        "export, ONNX Runtime and the builder of TensorRT-RTX. Of several names for one class it has one.\n\n"
        "The difference is the largest relative L2 between ONNX Runtime and `predict_on_batch`, in float32, on fresh\n"
        f"random inputs, with one row and with five. It must be below {LIMIT:.0e}; integers and booleans are equal.\n\n"
        f"Versions: {versions}.\n"
    ]
    for section in dict.fromkeys([*SECTIONS, *(section for section, _ in rows)]):
        # What of another environment has been judged stays as it is.
        known = names(section) if section in SECTIONS else [name for other, name in rows if other == section]
        found = [rows[section, name] for name in known if (section, name) in rows]
        works = sum(one.cells[:3] == ["yes"] * 3 for one in found)
        parts.append(f"\n## {section}\n\n{works} of {len(found)} rows work.\n\n{HEADER}{''.join(map(str, found))}")
    FILE.write_text("".join(parts))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names or sections")
    parser.add_argument("--missing", action="store_true", help="only what has no row yet")
    asked = parser.parse_args(arguments)
    rows = read()
    for section, (_, cases) in SECTIONS.items():
        for name, reason in NOT_EXPORTABLE[section].items():
            rows[section, name] = Row(name, ["-", "-", "-", f"not exportable: {reason}"])
        for case in cases:
            if asked.only and not {section, case.of, case.name} & set(asked.only):
                continue
            if asked.missing and (section, case.name) in rows:
                continue
            rows[section, case.name] = row(section, case, judge(case))
            write(rows)  # after each, as the largest take minutes


if __name__ == "__main__":
    main(sys.argv[1:])
