"""What is measured on several sources becomes one set of figures."""

from mmlm.evaluation.measure import Measurement, measured_summary, records_of
from mmlm.evaluation.measured_report import measured_table


def test_what_only_a_baseline_has_is_told_of_it_alone():
    """A model that says nothing has no voice, but the recording beside it has one."""
    found = Measurement(values={"voices": {"wer": 1.0}}, baselines={"voices": {"recording": {"wer": 0.1, "speaker_similarity": 0.9}}})
    metrics = measured_summary(found, "nothing")
    assert metrics["metrics"] == {"wer": 1.0} and metrics["baselines"] == {"recording": {"wer": 0.1, "speaker_similarity": 0.9}}
    page = measured_table(found)
    assert "<th>wer</th><th>speaker_similarity</th>" in page and "<td>model</td><td>1</td><td></td>" in page


class Sorted:
    """Records that are sorted by class, as folders of pictures are."""

    where = "sorted"

    def draw(self, rng, asks=None):
        return "drawn"

    def everything(self):
        return [f"{name}{number}" for name in "abc" for number in range(7)]


def test_of_more_records_than_are_measured_all_parts_of_the_list_are():
    source = Sorted()
    few = records_of(source, None, count=6, seed=0, number=0)
    assert len(set(few)) == 6 and {each[0] for each in few} == set("abc")
    assert all(records_of(source, None, count=count, seed=0, number=0) == source.everything() for count in (21, 30))
