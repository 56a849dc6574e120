from collections.abc import Sequence

from nanolm.config.catalog import find_configs
from nanolm.config.compose import Composition, compose
from nanolm.config.overrides import prepare

CONFIGS = find_configs("train")


def composed(script: str, overrides: Sequence[str] = ()) -> Composition:
    """Compose what a user types behind a script's name."""
    return compose(script, prepare(script, overrides, CONFIGS), CONFIGS)
