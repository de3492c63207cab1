"""Encoders and decoders inside the pipelines of scikit-learn, sentence-transformers and transformers."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError

SIZES = "{size: 12, picture: {image_size: 32, width: 24, layers: 2, heads: 2}, text: {context: 16, width: 16, layers: 2, heads: 2}}"
WORDS = ["two dogs and a cat", "The age is 3.", "a", "The name is Ann. The age is 3."]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Six files, dark and light ones in turn."""
    rng, names = np.random.default_rng(0), []
    for number in range(6):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray((rng.integers(0, 90, (30, 30, 3)) + 160 * (number % 2)).astype(np.uint8)).save(names[-1])
    return names


class TestScikitLearn:
    def test_a_pipeline_learns_from_vectors_and_is_cloned_and_pickled_by_name(self, towers, pictures) -> None:
        pytest.importorskip("sklearn")
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import Pipeline

        steps = Pipeline([("embed", mmlm.Vectorizer(towers, normalize=True)), ("classify", LogisticRegression(C=1000))])
        kinds = ["dark", "light"] * 3
        steps.fit(pictures, kinds)
        assert steps.predict(pictures).tolist() == kinds
        vectors = mmlm.encoder(towers).encode(pictures, normalize=True)
        assert np.allclose(steps[:-1].transform(pictures), vectors, atol=1e-6)
        assert steps[:-1].get_feature_names_out()[-1] == "vectorizer11"

        params = steps.named_steps["embed"].get_params()
        assert params == {"encoder": towers, "batch_size": 32, "normalize": True, "precision": "auto"}
        fresh = clone(steps)
        assert not hasattr(fresh.named_steps["embed"], "_open") and fresh.fit(pictures, kinds).predict(pictures[:1]) == ["dark"]
        content = pickle.dumps(steps)
        assert len(content) < 5000 and pickle.loads(content).predict(pictures).tolist() == kinds
        search = GridSearchCV(steps, {"embed__normalize": [True, False], "classify__C": [1.0, 100.0]}, cv=3).fit(pictures, kinds)
        assert search.best_score_ == 1

    def test_rows_of_a_frame_go_to_an_encoder_of_texts(self, text_folder) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"name": ["Ann", "Bob"], "age": [3, None]})
        step, encoder = mmlm.Vectorizer(text_folder), mmlm.encoder(text_folder)
        found = step.fit_transform(frame)
        assert np.allclose(found, encoder.encode([{"name": "Ann", "age": 3.0}, {"name": "Bob"}]), atol=1e-6)
        assert np.allclose(step.transform(np.array([["Ann", 3.0]], dtype=object)), encoder.encode([{"x0": "Ann", "x1": 3.0}]), atol=1e-6)
        assert np.allclose(step.transform(frame["name"]), encoder.encode(["Ann", "Bob"]), atol=1e-6)

    def test_what_cannot_be_is_told(self, towers, pictures) -> None:
        with pytest.raises(RecipeError, match="unknown encoder 'log_mell'. Did you mean 'log_mel'"):
            mmlm.Vectorizer("log_mell").fit(pictures)
        with pytest.raises(RecipeError, match="encoder: must be a name or the folder of a run, but is PictureEmbedder"):
            mmlm.Vectorizer(mmlm.encoder(towers)).fit(pictures)
        with pytest.raises(DataError, match="one column, but these are 2"):
            mmlm.Vectorizer(towers).transform(np.array([pictures[:2]], dtype=object))
        assert mmlm.Vectorizer(towers).transform(np.array([[pictures[0]]], dtype=object)).shape == (1, 12)


class TestSentenceTransformers:
    def test_its_own_code_for_likeness_and_search_runs_on_pictures_and_texts(self, towers, pictures) -> None:
        library = pytest.importorskip("sentence_transformers")
        from mmlm.bridges.sentence_transformers import Encoder

        model, ours = library.SentenceTransformer(modules=[Encoder(towers)], device="cpu"), mmlm.encoder(towers)
        given = [pictures[0], Image.open(pictures[1]), "a picture of a dog", np.asarray(Image.open(pictures[2]))]
        found = model.encode(given, batch_size=3)
        wanted = np.concatenate([ours.encode(pictures[:2]), ours.encode_texts(["a picture of a dog"]), ours.encode(pictures[2:3])])
        assert model.get_embedding_dimension() == 12 and np.allclose(found, wanted, atol=1e-5)
        assert np.allclose(model.similarity(found, found).numpy(), mmlm.similarity(wanted, wanted), atol=1e-5)
        corpus = model.encode(pictures, convert_to_tensor=True, normalize_embeddings=True)
        query = model.encode("a picture of a dog", convert_to_tensor=True, normalize_embeddings=True)
        (hits,) = library.util.semantic_search(query, corpus, top_k=2)
        order = np.argsort(-mmlm.similarity(wanted[2:3], ours.encode(pictures))[0])
        assert [hit["corpus_id"] for hit in hits] == order[:2].tolist()

    def test_texts_with_prompts_and_sounds(self, text_folder) -> None:
        library = pytest.importorskip("sentence_transformers")
        pytest.importorskip("torchaudio")
        from mmlm.bridges.sentence_transformers import Encoder
        from mmlm.sound import Sound

        model, ours = library.SentenceTransformer(modules=[Encoder(text_folder)], device="cpu"), mmlm.encoder(text_folder)
        assert np.allclose(model.encode(WORDS, batch_size=2), ours.encode(WORDS), atol=1e-5)
        assert np.allclose(model.encode("dogs", prompt="two "), ours.encode(["two dogs"])[0], atol=1e-5)
        with pytest.raises(DataError, match="item 0: pairs are for cross-encoders"):
            model[0]({"items": [("a", "b")]})
        wave_n = np.random.default_rng(0).normal(size=4000).astype(np.float32)
        heard = library.SentenceTransformer(modules=[Encoder("log_mel")], device="cpu").encode([{"array": wave_n, "sampling_rate": 16_000}])
        assert np.allclose(heard, mmlm.encoder("log_mel").encode([Sound(wave_n, 16_000)]), atol=1e-5)

    def test_a_saved_model_names_its_encoder(self, towers, tmp_path) -> None:
        library = pytest.importorskip("sentence_transformers")
        from mmlm.bridges.sentence_transformers import Encoder

        model = library.SentenceTransformer(modules=[Encoder(towers)], device="cpu")
        model.save(str(tmp_path / "saved"))
        assert sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*") if path.is_file()) < 20_000
        again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
        assert np.allclose(again.encode(["a dog"]), model.encode(["a dog"]), atol=1e-6)
        with pytest.raises(RecipeError, match="has first weights, which are others whenever it is opened"):
            Encoder(f"{{type: open_clip, sizes: {SIZES}}}").save(str(tmp_path))


class TestTransformers:
    @pytest.fixture(autouse=True)
    def registered(self) -> None:
        pytest.importorskip("transformers")
        import mmlm.bridges.hugging_face  # noqa: F401

    def test_auto_classes_read_a_folder_as_it_is_and_padding_changes_nothing(self, text_folder) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        assert AutoConfig.from_pretrained(text_folder).model_type == "mmlm"
        model, tokenizer = AutoModel.from_pretrained(text_folder), AutoTokenizer.from_pretrained(text_folder)
        ours = mmlm.encoder(text_folder)
        for side in ("right", "left"):
            tokenizer.padding_side = side
            given = tokenizer(WORDS, padding=True, return_tensors="pt")
            with torch.no_grad():
                states_btd = model(**given).last_hidden_state
            share = given["attention_mask"][..., None]
            assert np.allclose((states_btd * share).sum(1) / share.sum(1), ours.encode(WORDS), atol=1e-5), side
        assert list(tokenizer(WORDS[0])["input_ids"]) == ours.text.ids(WORDS[:1])[0]

    def test_a_revision_and_a_type_of_weights_are_what_was_asked_for(self, text_folder, monkeypatch) -> None:
        from mmlm.bridges.hugging_face import MmlmModel, MmlmTokenizer

        asked = []
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append(options["revision"]) or text_folder)
        half = MmlmModel.from_pretrained("someone/words", revision="v2", dtype=torch.bfloat16)
        MmlmTokenizer.from_pretrained("someone/words", revision="v3")
        assert asked == ["v2", "v3"] and half.dtype == torch.bfloat16
        with torch.no_grad():
            states = {dtype: MmlmModel.from_pretrained(text_folder, dtype=dtype)(torch.arange(5)[None]) for dtype in ("bfloat16", "auto")}
        low, full = (states[dtype].last_hidden_state for dtype in ("bfloat16", "auto"))
        assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32) and torch.allclose(low.float(), full, atol=0.1)

    def test_the_pipeline_of_features(self, text_folder) -> None:
        from transformers import pipeline

        found = pipeline("feature-extraction", model=text_folder, tokenizer=text_folder, device="cpu")(WORDS)
        wanted = mmlm.encoder(text_folder).encode(WORDS)
        assert np.allclose([np.mean(each[0], axis=0) for each in found], wanted, atol=1e-5)

    def test_what_is_saved_or_pushed_is_read_again_by_both(self, text_folder, tmp_path, monkeypatch) -> None:
        import huggingface_hub
        from transformers import AutoModel, AutoTokenizer

        def upload(self, repo_id, operations, **options):  # what the hub would do, below a folder
            for one in operations:
                target = tmp_path / repo_id / one.path_in_repo
                target.parent.mkdir(parents=True, exist_ok=True)
                with one.as_file() as file:
                    target.write_bytes(file.read())

        model = AutoModel.from_pretrained(text_folder)
        model.save_pretrained(tmp_path / "saved")
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", upload)
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: type("Repo", (), {"repo_id": repo_id}))
        model.push_to_hub("someone/pushed")
        wanted = mmlm.encoder(text_folder).encode(WORDS)
        for folder in (tmp_path / "saved", tmp_path / "someone" / "pushed"):
            again, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            with torch.no_grad():
                states_btd = again(**tokenizer(WORDS[:1], return_tensors="pt")).last_hidden_state
            assert np.allclose(states_btd[0].mean(0), wanted[0], atol=1e-5)
            assert np.allclose(mmlm.encoder(folder).encode(WORDS), wanted, atol=1e-6)

    def test_folders_that_cannot_be_are_told(self, text_folder, tmp_path) -> None:
        from transformers import AutoModel, AutoTokenizer

        shutil.copytree(text_folder, tmp_path / "bare")
        shutil.rmtree(tmp_path / "bare" / "tokenizers")
        assert AutoModel.from_pretrained(tmp_path / "bare").core.text is None
        with pytest.raises(CheckpointError, match="holds no tokenizers of texts, but one is wanted"):
            AutoTokenizer.from_pretrained(tmp_path / "bare")
        (tmp_path / "bare" / "model.safetensors").write_bytes(b"cut")
        with pytest.raises(CheckpointError, match="broken weight file"):
            AutoModel.from_pretrained(tmp_path / "bare")
