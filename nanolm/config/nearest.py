"""Find the valid name nearest to a misspelt one."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, candidates: Iterable[str], template: str = "{}") -> str:
    """Return ``"; did you mean …?"`` with the valid name nearest to a misspelt one, or an empty string.

    A dotted key also matches by its last part, so that ``batch_size`` finds ``trainer.batch_size``.
    """
    candidates = list(candidates)
    last = name.rpartition(".")[2]
    found = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last and last]
    found = found or difflib.get_close_matches(name, candidates, n=1)
    if not found:
        by_last = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        found = [by_last[part] for part in difflib.get_close_matches(last, by_last, n=1)]
    return f"; did you mean {' or '.join(template.format(item) for item in found)}?" if found else ""
