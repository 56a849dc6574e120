"""Tables of text for a terminal, a log or a file."""

import io
from collections.abc import Sequence


def aligned(
    title: str, rows: Sequence[Sequence[str]], *, left: Sequence[str] = ("note",), width: int | None = None
) -> str:
    """Lay out a title, a header and rows of as many cells each: words flush left, numbers flush right.

    The first column and those whose names in the header are in ``left`` hold words; they are folded where the table is
    wider than ``width``, in columns of the terminal (None: no limit).
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for place, name in enumerate(rows[0]):
        words = place == 0 or name in left
        table.add_column(justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    stream = io.StringIO()
    Console(file=stream, width=width or 10_000, color_system=None).print(Padding(table, (0, 0, 0, 2)))
    return "\n".join([title, *(line.rstrip() for line in stream.getvalue().splitlines())])
