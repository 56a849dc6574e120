"""The page that ``--help`` prints: made from the schema and the YAML files, without Hydra."""

import textwrap
from pathlib import Path
from typing import Any

from nanolm.config.catalog import Script, choices, default_choices, default_values
from nanolm.config.convert import type_of
from nanolm.config.schema import leaves, section_of

WIDTH = 100

_EXIT_CODES = """\
0  done
1  anything that is not your mistake; in a sweep, some job failed
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


def page(script: Script, config_dir: Path) -> str:
    """The help page of a script: what it does, examples, choices, every key with type, default and meaning."""
    command = f"python scripts/{script.name}.py"
    groups = default_choices(config_dir, script.name)
    values = default_values(config_dir, script.name)
    lines = [f"{command} [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]", "", *_wrapped(script.purpose)]
    lines += ["", "EXAMPLES"]
    for arguments, meaning in script.examples:
        lines += [f"  {f'{command} {arguments}'.rstrip()}", f"      {meaning}"]
    if groups:
        lines += ["", "CHOICES (* by default)"]
        for group, default in groups.items():
            lines += [f"  {group}={'' if default else '   (none by default)'}"]
            for name, description in choices(config_dir, group, script.name).items():
                lines += _row(f"  {'*' if name == default else ' '} {name}", description, 20)
    lines += ["", "KEYS (default, type, meaning)"]
    previous = ""
    for name, item in sorted(leaves(script.schema), key=lambda leaf: "." in leaf[0]):
        section = name.rpartition(".")[0]
        if section and section != previous:
            lines += ["", *_wrapped(f"{section}: {_purpose(script.schema, section)}")]
        previous = section
        default = _shown(values[name]) if name in values else "-"
        if default == "null" and "null" not in type_of(item):
            default = "(has to be given)"
        lines += _row(f"  {name} = {default}", f"{item.metadata['meaning']} [{type_of(item)}]", 44)
    if script.has_run_directory:
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
    """A cell and its explanation, which wraps in its own column; a cell that is too wide has a line to itself."""
    text = textwrap.wrap(right, WIDTH - column)
    if len(left) >= column:
        return [left, *(" " * column + line for line in text)]
    return [left.ljust(column) + (text[0] if text else ""), *(" " * column + line for line in text[1:])]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH - 2, initial_indent="  ", subsequent_indent="  ")


def _purpose(schema: type, section: str) -> str:
    kind: Any = schema
    for part in section.split("."):
        kind = section_of(kind.__dataclass_fields__[part].type)
    return (kind.__doc__ or "").splitlines()[0]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)
