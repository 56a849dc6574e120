"""Records that people and other programs may have changed."""

import json
import math

import pytest
from pydantic import ValidationError

from nanolm.errors import CheckpointError
from nanolm.files import read_record
from nanolm.metrics import Calibration, CalibratorRow, Evaluation, Interval, Reliability
from nanolm.metrics.records import Curve

FITTED = Calibration(
    temperature=Interval(1.5, 1.4, 1.6),
    nll=2.0,
    nll_at_temperature=1.9,
    gradient=1e-7,
    split="calibration",
    num_tokens=100,
    curve=Curve(temperature=[1.0, 2.0], nll=[2.0, math.nan]),
)
EVALUATION = Evaluation(
    split="val",
    step=3,
    num_tokens=100,
    num_documents=2,
    num_classes=7,
    intervals="over 2 documents",
    metrics={"nll": Interval(2.0, 1.9, 2.1), "perplexity": Interval(math.inf)},
    reliability={"1": Reliability(count=[100], confidence=[0.5], accuracy=[0.4])},
    calibrators=[CalibratorRow(calibrator="none", nll=2.0)],
    calibration=FITTED,
)


def test_metrics_stand_beside_the_other_keys_and_what_is_not_finite_is_null(tmp_path):
    content = json.loads(EVALUATION.model_dump_json())
    assert content["nll"] == {"value": 2.0, "low": 1.9, "high": 2.1}
    assert content["perplexity"] == {"value": None, "low": None, "high": None}
    assert content["calibrators"][0]["brier"] is None
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content | {"task": "a key of a classifier"}))
    read = read_record(path, Evaluation, CheckpointError)
    assert read.model_dump_json() == EVALUATION.model_dump_json()
    assert read.value("nll") == 2.0
    assert read.value("perplexity") is read.value("ece") is None
    assert str(read.metrics["nll"]) == "2.000 [1.900, 2.100]"
    assert str(read.metrics["perplexity"]) == "not finite"


def test_there_is_a_temperature_or_a_reason_never_both_never_neither():
    assert Calibration.none("no tokens").value is None
    assert FITTED.value == 1.5
    for change in ({"reason": "both"}, {"temperature": None}, {"temperature": Interval(0.0)}):
        with pytest.raises(ValidationError):
            Calibration(**(dict(FITTED) | change))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"temperature": {"value": "1.5", "low": None, "high": None}}, "temperature"),
        ({"temperature": {"value": 1e999, "low": None, "high": None}}, "temperature"),
        ({"temperature": {"value": 1.5, "self": 1.0}}, "temperature.self"),
        ({"temperature": 1.5}, "temperature"),
        ({"num_tokens": 2**63}, "num_tokens"),
        ({"num_tokens": True}, "num_tokens"),
        ({"curve": {"temperature": [1.0], "nll": []}}, "curve"),
        ({"more": 1}, "more"),
    ],
    ids=str,
)
def test_a_changed_file_is_refused_with_its_key(tmp_path, change, key):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(json.loads(FITTED.model_dump_json()) | change))
    with pytest.raises(CheckpointError, match=rf"{path}.*{key}"):
        read_record(path, Calibration, CheckpointError)
