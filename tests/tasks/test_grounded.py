"""Pictures in words: streams say what records say, answers are read back and scored, grammars hold, and a run goes from end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmlm.analysis.captions import cider
from mmlm.analysis.drawing import as_html, drawn
from mmlm.analysis.question_prior import QuestionPrior
from mmlm.base.errors import RecipeError
from mmlm.data.config import ScenesConfig
from mmlm.data.pictures import Expression, Picture, Question, Thing
from mmlm.generation import generate
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, evaluate, load_run, train
from mmlm.stream import NO_LABEL, Stream, pack
from mmlm.tasks.asking import COMMONEST, QUESTION_ALONE, Request
from mmlm.tasks.base import TRUTH
from mmlm.tasks.grounded import RANDOM_BOX, TWIN, GroundedTask, Said
from mmlm.tokenizers.boxes import Grounded, Phrase, parse

KINDS = "task.kinds={grounded_caption: 1, expression: 1, phrases: 1, caption: 1, question: 1}"
SMALL = ["backbone.width=32", "backbone.num_layers=1", "encoders.vision.channels=[8, 8, 16]"]


@pytest.fixture(scope="module")
def built() -> tuple[GroundedTask, MultimodalLM]:
    recipe = Recipe.read("grounded_captioning/quickstart", [KINDS, *SMALL, "task.requests=1"])
    task = build_task(recipe)
    return task, build_model(recipe, task).eval()


def scenes(count: int, **options) -> list[Picture]:
    return ScenesConfig(count=count, split="test", **options).build().everything()


def test_a_stream_holds_what_its_record_says(built) -> None:
    task, model = built
    kinds = set()
    for number, record in enumerate(scenes(40)):
        stream = task.example(record, np.random.default_rng(number))
        mark = next(place for place, each in enumerate(stream.segments) if each.modality == "special")
        kind = int(stream.segments[mark].ids[0]) - 1
        kinds.add(kind)
        prompt, (answer,) = stream.segments[: mark + 1], stream.segments[mark + 1 :]
        assert all(each.mutual == 1 and each.weight == 0 for each in prompt) and answer.mutual == 0 and answer.weight == 1
        assert np.array_equal(task.patches.decode(prompt[0]), record.read())
        whole, end = pack([stream], model.vocabulary).ids[0, -len(answer) :].tolist(), model.vocabulary.span("special").start
        said = task._parsed(whole, model.vocabulary, end)
        assert not said.faults and whole.index(end) == len(whole) - 1
        wanted = [request.truth.text for request in task.requests(record)]
        assert said.text in wanted
        batch = pack([stream], model.vocabulary)
        assert int((batch.labels != NO_LABEL).sum()) == len(answer)
    assert kinds == {0, 1, 2, 3, 4}


def perfect(task: GroundedTask, records: list[Picture]) -> list[list[Said]]:
    return [[Said(request, request.truth) for request in task.requests(record)] for record in records]


def test_true_answers_score_one_and_those_of_another_picture_do_not(built) -> None:
    task, _ = built
    records = scenes(60)
    outputs = perfect(task, records)
    found = task.score(outputs, records)
    assert set(found) == {"f1_all", "f1_loc", "cider", "acc_50", "r_1", "bleu_4", "rouge_l", "answers", "malformed"}
    assert all(found[name] == pytest.approx(1) for name in ("acc_50", "r_1", "bleu_4", "rouge_l", "answers")) and found["malformed"] == 0
    assert 0.8 < found["f1_all"] < 1  # of two things of a class only the first one said counts
    captions = [[one for one in each if one.request.kind == "grounded_caption"] for each in outputs]
    swapped = [[replace(one[0], answer=other[0].answer)] for one, other in zip(captions, captions[1:] + captions[:1], strict=True)]
    assert task.score(swapped, records)["f1_all"] < 0.3
    assert set(task.curves(outputs, records)) == {"f1_all", "acc_50", "r_1", "answers"}
    baselines = task.baselines(records)
    assert baselines[TRUTH] == found and baselines[RANDOM_BOX]["acc_50"] < 0.2 and 0.1 < baselines[COMMONEST]["answers"] < 0.6


def test_one_answer_is_compared_with_all_captions_of_its_picture(built) -> None:
    task, _ = built
    words = [("a red circle above a blue square", "the circle is red and the square is blue"), ("one cross", "there is one green cross")]
    records = [
        Picture(str(at), "here", 64, 64, lambda: np.zeros((64, 64, 3), np.uint8), captions=tuple(map(Grounded, texts)))
        for at, texts in enumerate(words)
    ]
    for best in (0, 1):
        outputs = [
            [Said(request, Grounded(some[best])) for request in task.requests(each)] for each, some in zip(records, words, strict=True)
        ]
        found = task.score(outputs, records)
        assert found["bleu_4"] == pytest.approx(1) and found["rouge_l"] == pytest.approx(1)
        assert found["cider"] == pytest.approx(cider([some[best] for some in words], words))


def test_curves_tell_nothing_of_what_is_not_asked() -> None:
    task = build_task(Recipe.read("grounded_captioning/quickstart", ["task.kinds={name: 1, detection: 1}", *SMALL]))
    box = (0.0, 0.0, 32.0, 32.0)
    records = [
        Picture(str(count), "here", 64, 64, lambda: np.zeros((64, 64, 3), np.uint8), things=(Thing("dog", box),) * count)
        for count in (1, 2)
    ]
    points = task.curves(perfect(task, records), records)
    assert points["names"] == [(1, 1)] and [count for count, _ in points["ap_50"]] == [1, 2]


def test_what_a_question_tells_by_itself_is_a_baseline_learned_from_other_pictures(built) -> None:
    """Better than one answer for all, as the question says whether a colour or a number is asked for, and far from seeing."""
    recipe = Recipe.read("grounded_captioning/quickstart", [KINDS, *SMALL])
    task, records = build_task(recipe), scenes(150)
    assert QUESTION_ALONE not in task.baselines(records)
    task.learn_priors(ScenesConfig(count=400).build().everything())
    found = task.baselines(records)
    alone = found[QUESTION_ALONE]["answers"]
    print(f"question alone {alone:.3f}, commonest {found[COMMONEST]['answers']:.3f}")
    assert found[COMMONEST]["answers"] + 0.05 < alone < 0.55
    without = build_task(Recipe.read("grounded_captioning/quickstart", SMALL))
    without.learn_priors(iter([]))
    assert QUESTION_ALONE not in without.baselines(records)


def test_the_prior_knows_what_always_follows_from_a_question() -> None:
    questions = [f"what colour is the {thing}" for thing in ("sky", "grass") * 5] + ["how many dogs are there"] * 5
    answers = ["blue", "green"] * 5 + ["two"] * 5
    prior = QuestionPrior(questions, answers)
    assert prior(["What colour is the sky?", "the grass is what colour", "how many cats are there"]) == ["blue", "green", "two"]
    assert len(prior(["nothing of this was ever asked"])) == 1


def test_wrong_and_malformed_answers_are_counted(built) -> None:
    task, _ = built
    red, blue = (0.0, 0.0, 32.0, 32.0), (40.0, 40.0, 60.0, 60.0)
    record = Picture(
        "a", "a", 64, 64, lambda: np.zeros((64, 64, 3), np.uint8),
        captions=(Grounded("A dog and a cat.", (Phrase(2, 5, (red,)), Phrase(12, 15, (blue,)))),),
        expressions=(Expression("the dog", red), Expression("the cat", blue)),
        questions=(Question("How many?", "2"), Question("What?", "Dog.")), things=(Thing("dog", red),),
    )  # fmt: skip
    requests = {request.question: request for request in task.requests(record) if request.kind in ("expression", "question")}
    shares = record.share(red)
    assert shares == (0, 0, 0.5, 0.5) and record.pixels(shares) == red
    answers = {
        "the dog": Grounded("the dog", (Phrase(0, 7, (shares,)),)), "the cat": Grounded("the cat", (), (("group is not closed", 3),)),
        "How many?": Grounded("3"), "What?": Grounded("dog"),
    }  # fmt: skip
    found = task.score([[Said(requests[question], answer) for question, answer in answers.items()]], [record])
    assert found["acc_50"] == 0.5 and found["answers"] == 0.5 and found["malformed"] == 0.5 and found["f1_all"] == 0


@torch.no_grad()
def test_constrained_answers_of_an_untrained_model_have_no_fault_and_free_ones_do(built) -> None:
    task, model = built
    records = scenes(6)
    free = task.score(task.predict(model, records), records)
    held = GroundedTask(task.config.model_copy(update={"constrained": True}), task.tokenizers)
    outputs = held.predict(model, records)
    assert free["malformed"] > 0.2 and held.score(outputs, records)["malformed"] == 0
    for one in (one for each in outputs for one in each):
        if one.request.kind == "expression":
            assert len(one.answer.phrases) == 1
        if one.request.kind == "phrases":
            assert one.answer.text == one.request.truth.text and len(one.answer.phrases) == len(one.request.truth.phrases)
        if one.request.kind in ("caption", "question"):
            assert not one.answer.phrases


def test_the_twin_sees_another_picture(built) -> None:
    task, model = built
    seen = []

    class Spy(GroundedTask):
        def answers(self, model, pixels, requests):
            seen.append([pixels[place] for place in range(len(requests))])
            return [request.truth for request in requests]

    spy = Spy(task.config, task.tokenizers)
    records = scenes(4)
    assert set(spy.twins(model, records)) == {TWIN}
    counts = [len(task.requests(record)) for record in records]
    shown = [record.read() for record in (*records[1:], records[0])]
    wanted = [pixels for pixels, count in zip(shown, counts, strict=True) for _ in range(count)]
    assert all(np.array_equal(one, other) for one, other in zip(seen[0], wanted, strict=True))


def test_answers_do_not_depend_on_what_is_read_with_them(built) -> None:
    task, model = built
    records = scenes(5, sides=[40, 64])
    together = task.predict(model, records)
    assert [[one.answer for one in task.predict(model, [record])[0]] for record in records] == [
        [o.answer for o in each] for each in together
    ]


def test_a_run_trains_shows_measures_and_stops_at_nothing(tmp_path) -> None:
    options = [
        KINDS, *SMALL, "train.steps=4", "train.batch_size=4", "train.validate_every=2", "train.sample_every=4", "data.validate_samples=3",
        "data.test=[{type: scenes, split: test, count: 5}, {type: scenes, split: compose, count: 5}]", f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    train(Recipe.read("grounded_captioning/quickstart", options))
    found = evaluate(tmp_path / "run")
    assert {f"{name}: scenes, split {split}" for name in ("f1_all", "acc_50", "malformed") for split in ("test", "compose")} <= set(
        found["metrics"]
    )
    assert {TWIN, RANDOM_BOX, COMMONEST, QUESTION_ALONE, TRUTH} <= set(found["baselines"])
    (folder,) = (tmp_path / "run" / "samples").glob("step*")
    said = json.loads((folder / "1.json").read_text())
    assert said[0]["kind"] in ("caption", "grounded_caption") and list(folder.glob("1_*_grounded_caption.png"))
    assert "said" in (folder / "1.txt").read_text()
    _, task, model = load_run(tmp_path / "run")
    assert isinstance(task, GroundedTask) and task.predict(model.eval(), scenes(1))


def test_tokenizers_of_another_kind_are_refused() -> None:
    for override in ("task.patches=text", "task.boxes=nothing"):
        with pytest.raises(RecipeError, match="tokenizer"):
            build_task(Recipe.read("grounded_captioning/quickstart", [override]))


def test_boxes_are_drawn_in_the_colours_of_their_words() -> None:
    said = Grounded("a dog & a cat", (Phrase(2, 5, ((0.1, 0.1, 0.5, 0.5),)), Phrase(10, 13, ((0.6, 0.6, 0.9, 0.9),))))
    picture = drawn(np.full((64, 64, 3), 255, np.uint8), said)
    assert picture.shape == (256, 256, 3) and len({tuple(each) for each in picture.reshape(-1, 3).tolist()}) == 3
    for shape, larger in (((8, 600, 3), (48, 3600, 3)), ((1, 5000, 3), (1, 5000, 3)), ((40, 60, 3), (280, 420, 3))):
        assert drawn(np.full(shape, 255, np.uint8), Grounded("")).shape == larger, "a narrow picture is no huge drawing"
    html = as_html(said)
    assert html.startswith("a <b style=") and "&amp;" in html and html.count("<b ") == 2 and html.endswith("cat</b>")


def test_a_report_shows_an_answer_of_each_kind_with_its_boxes_and_the_true_words(built) -> None:
    task, _ = built
    records = scenes(8)
    shown = task.pictures(perfect(task, records), records)
    kinds = [{request.kind for request in task.requests(record)} for record in records[:4]]
    worded = {"caption", "question"}  # below one picture
    assert len(shown) == sum(len(some - worded) + bool(some & worded) for some in kinds)
    assert all(one.startswith("<figure><img alt=") and "data:image/png" in one for one in shown)
    assert any("<b style=" in one for one in shown) and all("<small>true: " in one for one in shown)
    request = Request("question", "<script>?", Grounded("<b>yes"))
    (hostile,) = task.pictures([[Said(request, Grounded("<i>no"))]], records[:1])
    assert "<script>" not in hostile and "<b>yes" not in hostile and "<i>" not in hostile and "&lt;script&gt;?" in hostile


@torch.no_grad()
def test_things_are_listed_with_scores_and_measured() -> None:
    recipe = Recipe.read("grounded_captioning/quickstart", ["task.kinds={detection: 1}", *SMALL])
    task = build_task(recipe)
    model = build_model(recipe, task).eval()
    records = scenes(6)
    for record in records:
        (request,) = task.requests(record)
        order = sorted(record.things, key=lambda thing: (thing.box[1], thing.box[0]))
        assert request.truth.text == " ".join(thing.label for thing in order)
        pieces = task.pieces(request.truth)
        assert [name for name, _ in pieces] == ["obj", "text", "loc", "obj"] * len(order)
    found = task.score([[Said(request, request.truth) for request in task.requests(record)] for record in records], records)
    assert found == {"ap_50": 1, "ap_50_95": 1, "malformed": 0} and task.baselines(records)[TRUTH] == found
    held = GroundedTask(task.config.model_copy(update={"constrained": True, "max_tokens": 40}), task.tokenizers)
    free = [one.answer for each in task.predict(model, records) for one in each]
    outputs = held.predict(model, records)
    assert held.score(outputs, records)["malformed"] == 0
    for answer in [one.answer for each in outputs for one in each]:
        assert answer.text.split() == [word for phrase in answer.phrases for word in answer.words(phrase).split()]
    for phrase in (phrase for answer in [*free, *(one.answer for each in outputs for one in each)] for phrase in answer.phrases):
        assert len(phrase.scores) == len(phrase.boxes) and all(0 < score <= 1 for score in phrase.scores)


def test_what_is_found_where_nothing_is_lowers_the_precision() -> None:
    task = build_task(Recipe.read("grounded_captioning/quickstart", ["task.kinds={detection: 1}", *SMALL]))
    pixels, dog = np.zeros((64, 64, 3), np.uint8), Thing("dog", (8.0, 8.0, 24.0, 24.0))
    one, none = (Picture(f"{things}", "here", 64, 64, lambda: pixels, things=things, is_listed=True) for things in ((dog,), ()))
    (asked,), (asked_of_none,) = task.requests(one), task.requests(none)
    assert asked_of_none.truth == Grounded("") and not task.requests(replace(none, is_listed=False))
    assert len(task.example(none, np.random.default_rng(0)).segments[-1].ids) == 1  # the end alone is learned
    dogs = [Said(each, asked.truth) for each in (asked, asked_of_none)]
    silent = Said(asked_of_none, Grounded(""))
    assert task.score([[dogs[0]], [silent]], [one, none])["ap_50"] == 1
    assert task.score([[dogs[1]], [dogs[0]]], [none, one])["ap_50"] == pytest.approx(0.5, abs=0.01)


def test_several_requests_of_one_picture_are_learned_as_if_each_were_alone(built) -> None:
    """Loss and gradients of a sample with three requests are those of three samples with one; the picture sees no question."""
    recipe = Recipe.read("grounded_captioning/quickstart", [KINDS, *SMALL, "task.requests=3"])
    task = build_task(recipe)
    model = build_model(recipe, task).eval()
    (record,) = scenes(1)
    stream = task.example(record, np.random.default_rng(1))
    picture, *rest = stream.segments
    branches = [[each for each in rest if each.branch == branch] for branch in (1, 2, 3)]
    assert picture.branch == 0 and sum(map(len, branches)) == len(rest) and len({str(each[-1].ids.tolist()) for each in branches}) == 3
    alone = [Stream([picture, *(replace(each, branch=0, position=None) for each in some)]) for some in branches]
    wanted = {request.truth.text for request in task.requests(record)}
    for one in alone:
        said = task._parsed(
            pack([one], model.vocabulary).ids[0, -len(one.segments[-1]) :].tolist(),
            model.vocabulary,
            model.vocabulary.span("special").start,
        )
        assert said.text in wanted and not said.faults
    found = []
    for streams in ([stream], alone):
        model.zero_grad()
        total, weight = model.losses(pack(streams, model.vocabulary))["language_model"]
        total.backward()
        found.append((float(total), float(weight), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[0][1] == found[1][1] and found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(found[0][2], found[1][2], strict=True))
    for request in task.requests(record):
        shown = task.prompt(record.read(), request)
        assert {each.mutual for each in shown.segments} == {1, 2} and shown.segments[0].mutual == 1


def test_a_sample_answers_as_many_requests_as_there_are(built) -> None:
    task = build_task(Recipe.read("grounded_captioning/quickstart", [KINDS, *SMALL, "task.requests=16", "task.max_tokens=30"]))
    for number, record in enumerate(scenes(5)):
        stream = task.example(record, np.random.default_rng(number))
        answers = [each for each in stream.segments if each.modality == "answer"]
        assert 1 < len(answers) <= len(task.requests(record)) and all(len(each) <= 30 for each in answers)
    task = build_task(Recipe.read("grounded_captioning/quickstart", [KINDS, *SMALL, "task.requests=2", "task.max_tokens=8"]))
    bare = replace(scenes(1)[0], captions=(), questions=())
    assert task.example(replace(bare, expressions=()), np.random.default_rng(0)) is None


def test_a_cut_picture_lists_what_is_seen_in_it_where_it_is_seen() -> None:
    """Things are told by their colours: each box lies on its own, and what is seen of a listed thing and no other is in some box."""
    colors = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
    places = {"red": (8, 8, 24, 24), "green": (36, 12, 60, 28), "blue": (20, 40, 40, 60)}
    pixels = np.full((64, 64, 3), 120, np.uint8)
    for name, (x1, y1, x2, y2) in places.items():
        pixels[y1:y2, x1:x2] = colors[name]
    record = Picture("p", "here", 64, 64, lambda: pixels, things=tuple(Thing(name, place) for name, place in places.items()))
    recipe = Recipe.read("grounded_captioning/quickstart", ["task.kinds={detection: 1}", *SMALL, "task.least_area=0.3", "task.flip=0.5"])
    task, counts = build_task(recipe), set()
    for seed in range(40):
        stream = task.example(record, np.random.default_rng(seed))
        seen = task.patches.decode(stream.segments[0]).astype(int)
        answer = stream.segments[-1]
        tokens, at = [], 0
        for name, length in answer.pieces:
            tokens += [(name, int(index)) for index in answer.ids[at : at + length]]
            at += length
        said = parse(tokens[:-1], task.text.decode, task.boxes)
        assert not said.faults
        listed = {said.words(phrase): phrase.boxes[0] for phrase in said.phrases}
        counts.add(len(listed))
        high, wide = seen.shape[:2]
        for name, color in colors.items():
            is_it = np.abs(seen - np.array(color)).sum(-1) < 150
            if name in listed:
                x1, y1, x2, y2 = (round(v * size) for v, size in zip(listed[name], (wide, high, wide, high), strict=True))
                assert is_it[y1:y2, x1:x2].mean() > 0.75 and is_it[y1:y2, x1:x2].sum() > 0.75 * is_it.sum()
            else:
                x1, y1, x2, y2 = places[name]
                assert is_it.sum() <= 0.6 * (x2 - x1) * (y2 - y1)
    assert counts >= {1, 2, 3}


def test_a_picture_that_is_read_smaller_than_it_is_stored_is_cut_where_its_things_are() -> None:
    """Stored at 128 pixels, read at 64: what is listed lies on its colour."""
    pixels = np.full((64, 64, 3), 120, np.uint8)
    pixels[36:60, 34:62] = (20, 220, 20)
    record = Picture("p", "here", 128, 128, lambda: pixels, things=(Thing("green", (68.0, 72.0, 124.0, 120.0)),))
    recipe = Recipe.read("grounded_captioning/quickstart", ["task.kinds={detection: 1}", *SMALL, "task.least_area=0.3"])
    task, listed = build_task(recipe), 0
    for seed in range(30):
        stream = task.example(record, np.random.default_rng(seed))
        seen = task.patches.decode(stream.segments[0]).astype(int)
        is_it = np.abs(seen - np.array((20, 220, 20))).sum(-1) < 150
        bins = [int(index) for index in stream.segments[-1].ids.tolist()]
        sizes = dict(stream.segments[-1].pieces)
        if "loc" not in sizes:
            continue
        at = next(place for place, (name, _) in enumerate(stream.segments[-1].pieces) if name == "loc")
        start = sum(length for _, length in stream.segments[-1].pieces[:at])
        box, (high, wide) = task.boxes.box(bins[start : start + 4]), seen.shape[:2]
        x1, y1, x2, y2 = (round(v * size) for v, size in zip(box, (wide, high, wide, high), strict=True))
        assert is_it[y1:y2, x1:x2].mean() > 0.75
        listed += 1
    assert listed > 5


def test_long_captions_are_grounded_whole_and_kinds_without_a_share_are_not_measured(built) -> None:
    task, model = built
    options = ["task.kinds={phrases: 1, caption: 1, question: 0, detection: 0}", "task.max_tokens=8"]
    small = build_task(Recipe.read("grounded_captioning/quickstart", [*SMALL, *options, "task.requests=1"]))
    assert small.metrics == ["cider", "bleu_4", "rouge_l", "r_1", "malformed"]
    small.text = task.text
    (record,) = scenes(1, min_things=3, max_things=3, width=96, height=96)
    outputs = small.predict(model, [record])
    said = {one.request.kind: one for one in outputs[0]}
    assert said["phrases"].answer.text == record.captions[0].text and len(said["phrases"].answer.phrases) == 3
    assert len(task.text.ids([said["caption"].answer.text])[0]) <= 10 and small.score(outputs, [record])["malformed"] == 0


def test_what_is_asked_several_times_is_answered_once(built, monkeypatch) -> None:
    task, model = built
    record = scenes(1)[0]
    record = replace(record, captions=(*record.captions, Grounded("Something else."), Grounded("A third one.")))
    asked = []

    def counted(model, prompts, **options):
        asked.append(len(prompts))
        return generate(model, prompts, **options)

    monkeypatch.setattr("mmlm.tasks.asking.generate", counted)
    (said,) = task.predict(model, [record])
    captions = [one for one in said if one.request.kind == "caption"]
    assert len(captions) == 3 and len({one.request.truth.text for one in captions}) == 3
    assert all(one.answer == captions[0].answer for one in captions)
    assert sum(asked) == len(said) - 2 and [one.request for one in said] == task.requests(record)


def test_the_twin_of_a_picture_in_several_lines_is_another_picture(built) -> None:
    task, model = built
    one, other = scenes(2)

    class Spy(GroundedTask):
        def answers(self, model, pixels, requests):
            self.seen = pixels
            return [request.truth for request in requests]

    spy = Spy(task.config, task.tokenizers)
    spy.twins(model, [one, one, other])
    counts = [len(task.requests(each)) for each in (one, one, other)]
    wanted = [each for each, count in zip((other, other, one), counts, strict=True) for _ in range(count)]
    assert all(np.array_equal(seen, each.read()) for seen, each in zip(spy.seen, wanted, strict=True))
    assert spy.twins(model, [one, one]) == {} == spy.twins(model, [])


def test_groups_of_constrained_answers_have_words(built) -> None:
    task, model = built
    spans = {name: model.vocabulary.span(name) for name in ("text", "obj", "loc")}
    grammar = task._pointing(spans, 1 << 20, 64)
    begun = grammar.allowed([spans["obj"].start])
    shown = [task.text.decode([index - spans["text"].start]) for index in begun]
    assert all(each.strip() for each in shown) and 0 < len(spans["text"]) - len(begun) < len(spans["text"]) / 2
    assert set(grammar.allowed([spans["obj"].start, begun[0]])) >= set(spans["text"])
