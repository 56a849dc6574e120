"""Make the page that ``--help`` prints from the schema and the YAML files, without Hydra."""

import textwrap
from pathlib import Path
from typing import get_type_hints

from nanolm.config.catalog import choices, default_choices, default_values, description
from nanolm.config.keys import leaves, sections_of
from nanolm.config.schema import SCHEMAS, has_run_directory
from nanolm.config.words import expected, typed

WIDTH = 100

_EXIT_CODES = """\
0  done
1  anything else; in a sweep, some job failed
2  the input is wrong: one message says what was expected, what was found, and what to do next
3  stopped on request (Ctrl-C) with a valid checkpoint; the command that continues is printed"""

_WRITING = """\
KEY=VALUE changes one value, GROUP=CHOICE a whole group of them. Numbers as 400, 1e-3, 100_000; true or false; null
for none; lists as [a,b]. A text or a path arrives exactly as typed, in whatever quotes the shell needs,
prompt="What's up? (x=1), yes" or 'data.path=my texts/*.txt'. The one exception is null, where the key allows it."""

_SWEEPS = """\
With -m, values with commas between them make one job for each combination: -m model=nano,micro seed=0,1,2. A text
with a comma of its own goes in a second pair of quotes: -m prompt="'Yes, no',Maybe". Ranges: seed='range(0,5)'.
The jobs land in {directory}/<number>/; the others go on when one fails, and the failed ones are listed at the end.
The same command continues a sweep that was interrupted: its directory has no time in its name.
-m hydra/launcher=... hands the jobs to a cluster."""

_FLAGS = (
    ("-m, --multirun", "a sweep: one job for each combination of values"),
    ("--cfg job", "print the composed configuration and run nothing; with --package trainer a part of it"),
    ("--config-dir DIR", "look for further choices in DIR too, such as DIR/experiment/mine.yaml"),
    ("--info, --hydra-help", "how the configuration is composed; Hydra's own help and settings (hydra.*)"),
    ("--version", "nanolm's version"),
)


def page(script: str, config_dir: Path) -> str:
    """Make the help page of a script: what it does, its choices, every key with its default, meaning and type."""
    schema, values = SCHEMAS[script], default_values(config_dir, script)
    groups = default_choices(config_dir, script)
    lines = [f"python scripts/{script}.py [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]", ""]
    lines += description(config_dir / f"{script}.yaml")
    if groups:
        lines += ["", "CHOICES (* by default)"]
        for group, default in groups.items():
            lines += [f"  {group}={'' if default else '   (none by default)'}"]
            for name, meaning in choices(config_dir, group, script).items():
                lines += _row(f"  {'*' if name == default else ' '} {name}", meaning, 20)
    lines += ["", "KEYS (default, meaning, type)"]
    previous = ""
    for name, key in sorted(leaves(schema).items(), key=lambda leaf: "." in leaf[0]):
        section = name.rpartition(".")[0]
        if section != previous:
            lines += ["", *_wrapped(f"{section}: {_purpose(schema, section)}")]
        previous = section
        default = typed(values[name]) if name in values else "(set by the choice)" if key.choices else "-"
        if default == "null" and not key.is_nullable:
            default = "(required)"
        only = f"; only {section}={', '.join(key.choices)}" if key.choices else ""
        lines += _row(f"  {name} = {default}", f"{key.meaning} [{expected(key.kind)}{only}]", 44)
    if has_run_directory(schema):
        lines += ["", "  The run directory, to continue a run or to choose the place:"]
        lines += [f"  hydra.run.dir = {values['hydra.run.dir']}"]
    lines += ["", "WRITING VALUES", *_wrapped(_WRITING)]
    lines += ["", "SWEEPS", *_wrapped(_SWEEPS.format(directory=values["hydra.sweep.dir"]))]
    lines += ["", "FLAGS"]
    for flag, meaning in _FLAGS:
        lines += _row(f"  {flag}", meaning, 26)
    lines += ["", "EXIT CODES", textwrap.indent(_EXIT_CODES, "  ")]
    return "\n".join(lines)


def _row(left: str, right: str, column: int) -> list[str]:
    """Wrap an explanation in the column behind a cell; a cell that is too wide has a line to itself."""
    text = textwrap.wrap(right, WIDTH, initial_indent=" " * column, subsequent_indent=" " * column)
    if len(left) + 2 > column or not text:
        return [left, *text]
    return [left.ljust(column) + text[0][column:], *text[1:]]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="  ", subsequent_indent="  ")


def _purpose(kind: type, section: str) -> str:
    """Return the first line of a section's docstring; that of the common class where it has several choices."""
    for part in section.split("."):
        first, *others = sections_of(get_type_hints(kind)[part]).values()
        kind = next(parent for parent in first.__mro__ if all(issubclass(other, parent) for other in others))
    return (kind.__doc__ or "").splitlines()[0]
