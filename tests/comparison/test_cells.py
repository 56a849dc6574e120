import pytest

from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.cells import value_text
from nanolm.errors import ConfigError, DataError


def names(cells):
    return [[run.path.name for run in cell.runs] for cell in cells]


def test_seeds_are_one_cell_and_numbers_are_sorted_as_numbers(make_run, panel_of):
    for number in range(12):
        make_run(str(number), seed=number % 2, loss__label_smoothing=0.1 * (number // 2), wandb__group=str(number))
    panel = panel_of()
    assert panel.keys == ["loss.label_smoothing"]
    assert [cell.settings["loss.label_smoothing"] for cell in panel.cells] == [0.1 * n for n in range(6)]
    assert names(panel.cells) == [[str(2 * n), str(2 * n + 1)] for n in range(6)]
    assert panel.baseline is panel.cells[0]
    assert panel.cells[1].label == "label_smoothing=0.1"


def test_any_name_of_a_folder_can_be_sorted(make_run, panel_of):
    for name in ("10", "²", "9", "٣", "b²"):
        make_run(name, seed=ord(name[0]))
    assert len(panel_of().baseline.runs) == 5


def test_keys_that_follow_from_others_are_implied(make_run, panel_of):
    make_run("0", model__name="nano", model__hidden_size=8, trainer__eval_every=1)
    make_run("1", model__name="micro", model__hidden_size=16, trainer__eval_every=2)
    make_run("2", model__name="micro", model__hidden_size=16, optimizer__weight_decay=0.5)
    panel = panel_of()
    assert (panel.keys, panel.implied) == (["model.name", "optimizer.weight_decay"], ["model.hidden_size"])
    assert [cell.label for cell in panel.cells] == [
        "model.name=nano weight_decay=null",
        "model.name=micro",
        "model.name=micro weight_decay=0.5",
    ]


def test_of_two_runs_of_one_seed_the_later_counts(make_run, panel_of):
    for number, seed in enumerate((0, 1, 0)):
        make_run(f"{number}", seed)
    panel = panel_of()
    assert names(panel.cells) == [["2", "1"]]
    assert [run.path.name for run in panel.repeated] == ["0"]


def test_a_baseline_is_found_by_values(make_run, tmp_path):
    make_run("0", loss__label_smoothing=0.0, model__tie_word_embeddings=True, evaluate__stride=None)
    make_run("1", loss__label_smoothing=0.1, model__tie_word_embeddings=False, evaluate__stride=8)
    make_run("2", loss__label_smoothing=0.1, model__tie_word_embeddings=True, evaluate__stride=8)
    runs, _ = find_runs(tmp_path / "runs")
    for wanted, path in (
        ("loss.label_smoothing=0.10", "1"),
        ("label_smoothing=0.1 tie_word_embeddings=true", "2"),
        ("model.tie_word_embeddings=false", "1"),
        ("evaluate.stride=null", "0"),
    ):
        (panel,) = make_panels(runs, wanted)
        assert panel.baseline.runs[0].path.name == path
    for unknown in ("loss.label_smoothing=0.2", "loss.nothing=0", "nonsense"):
        with pytest.raises(ConfigError, match=r"baseline(.|\n)*stride=null"):
            make_panels(runs, unknown)


def test_a_task_is_a_panel_and_without_the_baselines_values_keeps_its_first_cell(make_run, tmp_path):
    make_run("0", task__name="binary", task__l2=0.5)
    make_run("1", task__name="binary", task__l2=0.0)
    make_run("2", task__name="softmax", task__l2=0.25)
    binary, softmax = make_panels(find_runs(tmp_path / "runs")[0], "task.l2=0")
    assert [(panel.task, panel.keys) for panel in (binary, softmax)] == [("binary", ["task.l2"]), ("softmax", [])]
    assert names([binary.baseline, softmax.baseline]) == [["1"], ["2"]]


@pytest.mark.parametrize("stored", [False, True])
def test_seeds_of_one_kind_of_teacher_are_one_cell(make_run, panel_of, tmp_path, stored):
    """Known from the teachers' own runs, or from what the students' evaluations hold; never from a folder's name."""
    for seed in (0, 1):
        for kind, smoothing in (("a", 0.0), ("b", 0.1)):
            teacher = tmp_path / f"elsewhere/{kind}/{seed}"
            if not stored:
                teacher = make_run(f"{kind}/{seed}", seed, loss__label_smoothing=smoothing, model__name="teacher")
            made = {"seed": seed, "name": kind, "loss.label_smoothing": smoothing, "model.name": "teacher"}
            make_run(
                f"student-{kind}-{seed}",
                seed=seed,
                model__name="student",
                loss__distillation={"teacher": str(teacher), "weight": 0.5},
                found={"teacher": made} if stored else None,
            )
    panel = panel_of()
    students = [cell for cell in panel.cells if cell.settings["model.name"] == "student"]
    assert [[run.seed for run in cell.runs] for cell in students] == [[0, 1]] * 2
    kinds = [cell.settings["loss.distillation.teacher"] for cell in students]
    assert kinds == ["label_smoothing=0", "label_smoothing=0.1"]
    assert len({cell.label for cell in panel.cells}) == len(panel.cells) == (2 if stored else 4)


def test_unfinished_runs_are_distinguished_from_none(make_run, tmp_path):
    finished = make_run("0")
    for name, content in (
        ("runs/1", "seed: 0\ntrainer: {max_steps: 3}\n"),
        ("runs/page", "seed: 0\nsentence: one\n"),  # this one and the others are no runs
        ("runs/0/wandb/run-1/files", "seed: 0\nsentence: one\n"),
        (finished / "checkpoints/step-00000003", "seed: 0\n"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(content)
    runs, unfinished = find_runs(tmp_path / "runs")
    assert [run.path.name for run in runs] == ["0"]
    assert [path.name for path in unfinished] == ["1"]
    with pytest.raises(DataError, match=r"2 without evaluation-test\.json"):
        find_runs(tmp_path / "runs", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no run"):
        find_runs(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "seed: [0"),
        ("config.yaml", "no: seed\ntrainer: {max_steps: 3}"),
        ("config.yaml", '!!python/object/apply:os.system ["true"]'),
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"nll": 3}'),
        ("documents-val.npz", "no archive"),
    ],
)
def test_a_damaged_file_is_named(make_run, tmp_path, file, content):
    (make_run("0") / file).write_text(content)
    with pytest.raises(DataError, match=file):
        find_runs(tmp_path / "runs")


def test_values_are_written_as_they_are_typed():
    assert [value_text(v) for v in (None, True, 0.1, 1e-05, 3, "a b")] == ["null", "true", "0.1", "1e-05", "3", "a b"]
