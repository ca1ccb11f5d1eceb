"""Rows of tables in text: a row a line."""

from __future__ import annotations

import csv


def rows_of(lines: list[str], separator: str) -> list[list[str]]:
    """The cells of each line. Raises csv.Error for an unclosed quotation mark, which would swallow the rows below."""
    reader, rows = csv.reader(lines, delimiter=separator), []
    for row in reader:
        rows.append(row)
        if reader.line_num != len(rows):
            raise csv.Error(f"a quotation mark in line {len(rows)} is not closed")
    return rows
