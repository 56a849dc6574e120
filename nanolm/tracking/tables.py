"""Tables of text for a terminal or a file."""

from collections.abc import Sequence


def aligned(title: str, rows: Sequence[Sequence[str]], *, left: Sequence[str] = ("note",)) -> str:
    """Columns as wide as their widest cell: the first one and those named in ``left`` flush left, numbers right.

    Args:
        title: the line above.
        rows: the header and the rows below it, of as many cells each.
        left: names in the header of further columns of words.
    """
    from rich.cells import cell_len  # some characters are two columns wide, some none

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [title]
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            room = " " * (width - cell_len(cell))
            cells.append(cell + room if place == 0 or rows[0][place] in left else room + cell)
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
