"""What is measured on several sources becomes one set of figures."""

from mmlm.evaluation.measure import Measurement, measured_summary
from mmlm.evaluation.measured_report import measured_table


def test_what_only_a_baseline_has_is_told_of_it_alone():
    """A model that says nothing has no voice, but the recording beside it has one."""
    found = Measurement(values={"voices": {"wer": 1.0}}, baselines={"voices": {"recording": {"wer": 0.1, "speaker_similarity": 0.9}}})
    metrics = measured_summary(found, "nothing")
    assert metrics["metrics"] == {"wer": 1.0} and metrics["baselines"] == {"recording": {"wer": 0.1, "speaker_similarity": 0.9}}
    page = measured_table(found)
    assert "<th>wer</th><th>speaker_similarity</th>" in page and "<td>model</td><td>1</td><td></td>" in page
