import contextlib
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nanolm.config import load
from nanolm.config.overrides import prepare, quote, swept_texts
from nanolm.errors import ConfigError
from tests.config.composed import CONFIGS, composed

PARSER = OverridesParser.create()

# What has a meaning to the override grammar, to interpolations, to YAML or to a shell comes up often.
TEXT = st.text(st.sampled_from("\\'\"${}()[],=:?~+ \t\n.a1") | st.characters(exclude_categories=[]), max_size=20)
HARD = [
    *("What's up? (x=1), yes", "a, b", "", " leading and trailing ", "'quoted'", '"double"', "line\nbreak"),
    *("back\\slash", "trailing\\", "two\\\\", "\\'", "${name}", "\\${name}\\", "$" + "{oc.env:HOME}", "???"),
    *("null", "true", "1e5", "[a,b]", "{a: b}", "choice(a,b)", "日本 🙂", "-", "a=b=c", "~", "\udcff"),
]


def arrives(element: str) -> object:
    """What a value becomes after the override grammar and an interpolation have read it."""
    parsed = OmegaConf.create({"x": PARSER.parse_override(f"x={element}").value()})
    return OmegaConf.to_container(parsed, resolve=True)["x"]


@given(TEXT)
@settings(max_examples=500, deadline=None)
def test_a_quoted_text_arrives_as_it_was(text: str) -> None:
    assert arrives(quote(text)) == text


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_arrive_as_typed(text: str, tmp_path: Path) -> None:
    assert load("sample", [f"checkpoint={tmp_path}", f"prompt={text}"]).prompt == text


@given(prompt=TEXT, path=TEXT.filter(lambda text: text != "null"))
@settings(max_examples=30, deadline=None)
def test_any_text_arrives_exactly_through_the_whole_composition(prompt: str, path: str) -> None:
    container = composed("train", ["data=text", f"+sample.prompt={prompt}", f"data.path={path}"]).container
    assert container["sample"]["prompt"] == prompt
    assert container["data"]["path"] == path


def test_null_is_no_value_only_where_that_is_allowed() -> None:
    container = composed("train", ["wandb.group=null", "sample.prompt=null"]).container
    assert container["wandb"]["group"] is None
    assert container["sample"]["prompt"] == "null"


@pytest.mark.parametrize("path", ["out/a b, (c=d)", "${name}/x", "it's"])
def test_the_run_directory_is_a_path_and_no_grammar(path: str) -> None:
    assert composed("train", [f"hydra.run.dir={path}"]).run_directory == path


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Yes,No", ["Yes", "No"]),
        ("Yes, No", ["Yes", "No"]),
        ("'Yes, no'", ["Yes, no"]),
        ("'Yes, no', Maybe", ["Yes, no", "Maybe"]),
        ('"a, b",c', ["a, b", "c"]),
        ("What's up,doc's", ["What's up", "doc's"]),
        (r"'it\'s, \\',b", ["it's, \\", "b"]),
        ("", [""]),
        ("a,", ["a", ""]),
        ("null,'null'", [None, "null"]),
        ("'a'b,c", ["'a'b", "c"]),
    ],
)
def test_commas_separate_the_texts_of_a_sweep_unless_quoted(value: str, texts: list[str | None]) -> None:
    assert swept_texts(value) == texts


@given(st.lists(TEXT, min_size=1, max_size=4))
@example(["'", "\\", ""])
@settings(max_examples=200, deadline=None)
def test_texts_reach_the_jobs_of_a_sweep(texts: list[str]) -> None:
    typed = ",".join("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in texts)
    (prepared,) = prepare("sample", [f"prompt={typed}"], CONFIGS, sweep=True)
    jobs = BasicSweeper.split_arguments(PARSER.parse_overrides([prepared]), max_batch_size=None)[0]
    assert [arrives(job[0].removeprefix("prompt=")) for job in jobs] == texts


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("trainer.max_step=3", "mean trainer.max_steps?"),
        ("+trainer.max_step=3", "mean trainer.max_steps?"),
        ("+trainer.foo=3", "trainer.foo: "),
        ("modle=nano", "mean model?"),
        ("batch_size=3", "mean trainer.batch_size or evaluate.batch_size?"),
        ("zzz=3", "--help"),
        ("model=nanoo", "mean model=nano? model is one of gpt2, micro, nano"),
        ("experiment=zzz", "experiment is one of "),
        ("model=", "model: expected the name"),
        ("model={hidden_size: 3}", "model: expected the name"),
        ("model@x=nano", "mean model?"),
        ("sample=3", "sample.prompt=VALUE"),
        ("trainer.max_steps", "trainer.max_steps=VALUE"),
        ("world", "'world': expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("=3", "no such key"),
        ("~trainer.max_steps", "~trainer.max_steps: "),
        ("trainer.max_steps=(3", ">= 1 and <= 10^12, or null, found the text '(3'"),
        ("trainer.max_steps=1,2", "add -m"),
        ("wandb.tags=a,b", "write wandb.tags=[…]"),
        ("trainer.eval_every=None", "null for none"),
        ("trainer.max_steps='3'", "found the text '3'"),
        ("trainer.max_steps=${nothing}", "'nothing'"),
        ("seed=" + "9" * 5000, "seed: expected a whole number"),
        ("hydra.foo=3", "hydra.foo"),
        ("hydra/launcher=zzz", "hydra/launcher=zzz: "),
        ("hydra.searchpath=3", "hydra.searchpath"),
    ],
)
def test_what_is_wrong_with_an_override_is_reported(override: str, word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load("train", [override])
    message = str(raised.value)
    assert word in message
    assert not any(hydra in message for hydra in ("HYDRA_FULL_ERROR", "http", "To append", "antlr", "<EOF>"))
    assert len(message) < 600


def test_a_choice_can_be_taken_back_where_none_is_the_default() -> None:
    assert load("train", ["experiment=tinyshakespeare", "+experiment=null"]) == load("train")


PIECES = [*"=+~.,}'\"\\[]()@/: ", "++", "${", "null", "???", "-1", "nan"]
SEEDS = [
    "model=nano",
    "trainer.max_steps=400",
    "trainer.device=cpu",
    "optimizer.learning_rate=1e-3",
    "loss.softcap=null",
    "wandb.tags=[a,b]",
    "sample.prompt=What's up? (x=1), yes",
    "sample.temperature=fitted",
    "name=run",
    "experiment=null",
    "hydra.run.dir=runs/x",
    "hydra.job.chdir=false",
    "trainer.sequence_length=${trainer.batch_size}",
]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_overrides_load_or_are_refused_but_never_break(data: st.DataObject) -> None:
    overrides = data.draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3))
    position = data.draw(st.integers(0, len(overrides) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        text = overrides[position]
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(start + 3, len(text))))
        overrides[position] = text[:start] + data.draw(st.sampled_from(PIECES) | st.text(max_size=3)) + text[stop:]
    with contextlib.suppress(ConfigError):
        load("train", overrides)
