"""One configuration: YAML composed by Hydra, validated once by pydantic, frozen from there on.

``load`` is all that a library user or a test needs; ``command_line.run`` is what the scripts call. Hydra is
imported when something is composed and not before.
"""

from nanolm.config.compose import load
from nanolm.config.convert import check_same_config, differences, dotted, flatten, from_yaml, to_yaml
from nanolm.config.words import typed

__all__ = ["check_same_config", "differences", "dotted", "flatten", "from_yaml", "load", "to_yaml", "typed"]
