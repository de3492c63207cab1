"""Pictures as codes: shapes, batches, places, any quantizer, files, and what is no picture or no codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.base.schema import check
from mmlm.stream import Segment, Stream, pack
from mmlm.tokenizers.config import TOKENIZERS, SmallCodecConfig
from mmlm.tokenizers.image_codes import AXES, ImageCodes, _gathered, _scattered, to_network, to_pixels
from mmlm.vocabulary import Vocabulary

QUANTIZERS = {
    "vq": {"type": "vq", "book_size": 16},
    "books": {"type": "vq", "num_books": 3, "book_size": 8},
    "fsq": {"type": "fsq", "levels": [4, 3, 3]},
    "lfq": {"type": "lfq", "bits": 5},
}
TINY = {"type": "image_codes", "patch": 4, "max_side": 40, "width": 16, "encoder_blocks": 1, "decoder_blocks": 1, "latent_size": 6}


def built(kind: str = "vq", **more) -> ImageCodes:
    """Codes with random weights whose entries are about as large as their vectors."""
    codes = check(TOKENIZERS.get("image_codes"), {**TINY, "quantizer": QUANTIZERS[kind], **more}, "test").build()
    torch.manual_seed(0)
    for module in codes.begin().eval().quantizer.modules():
        if hasattr(module, "vectors_sd"):
            module.vectors_sd.data.normal_(std=0.5)
    return codes


@pytest.fixture(scope="module", params=sorted(QUANTIZERS))
def codes(request) -> ImageCodes:
    return built(request.param)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (8, 20), (21, 9), (40, 40), (400, 90)])
def test_a_picture_is_a_code_for_each_square_and_a_picture_of_these_squares_again(codes, size) -> None:
    segment = codes.encode(picture(*size))
    rows, columns = codes.grid(*size)
    assert segment.modality == "image_code" and segment.ids.dtype == torch.long
    assert segment.ids.shape == (rows * columns, codes.num_books)
    assert segment.position.tolist() == [[row, column] for row in range(rows) for column in range(columns)]
    assert list(codes.sizes) == [f"image_code.{number}" for number in range(codes.num_books)]
    assert all(int(segment.ids[:, number].max()) < size for number, size in enumerate(codes.sizes.values()))
    decoded = codes.decode(segment)
    assert decoded.shape == (4 * rows, 4 * columns, 3) and decoded.dtype == np.uint8
    assert max(decoded.shape[:2]) <= 40 and max(decoded.shape[:2]) - max(min(max(size), 40), 4) < 4


def test_pictures_in_a_batch_are_coded_and_decoded_as_each_by_itself(codes, monkeypatch) -> None:
    monkeypatch.setattr("mmlm.tokenizers.image_codes.AT_ONCE", 500)
    pictures = [picture(*size, seed) for seed, size in enumerate([(8, 20), (16, 16), (8, 20), (20, 8), (8, 20), (8, 20), (40, 40)])]
    together = codes.encode_many(pictures)
    for one, segment in zip(pictures, together, strict=True):
        assert torch.equal(codes.encode(one).ids, segment.ids)
    for segment, decoded in zip(together, codes.decode_many(together), strict=True):
        assert np.abs(codes.decode(segment).astype(int) - decoded).max() <= 1


def test_what_training_gives_is_what_encode_and_decode_give(codes) -> None:
    pixels = picture(12, 20)
    with torch.no_grad():
        decoded, ids, _ = codes.model.eval()(to_network(pixels)[None])
    segment = codes.encode(pixels)
    assert torch.equal(ids[0], segment.ids) and np.array_equal(codes.decode(segment), to_pixels(decoded[0]))


def test_squares_of_places_are_gathered_whole_and_scattered_again() -> None:
    x_byxd = torch.arange(2 * 6 * 9 * 2).view(2, 6, 9, 2)
    found = _gathered(x_byxd, 3)
    assert found.shape == (2, 2, 3, 18) and torch.equal(_scattered(found, 3), x_byxd)
    for row in range(2):
        for column in range(3):
            square = x_byxd[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            assert torch.equal(found[:, row, column], square.flatten(1))


def test_a_code_sees_its_surroundings_alone_and_every_weight_learns(codes) -> None:
    near, far = picture(40, 40), picture(40, 40)
    far[-4:] = 255 - far[-4:]  # the last row of squares
    changed = (codes.encode(near).ids != codes.encode(far).ids).any(1).view(10, 10)
    assert not bool(changed[:5].any())  # 5 x 5 taps in one fine and one coarse block reach 3 squares at most
    model = built(next(name for name, one in QUANTIZERS.items() if one == codes.config.quantizer.model_dump(exclude_unset=True))).begin()
    decoded, _, parts = model.train()(to_network(near)[None])
    (decoded.square().mean() + sum(value for value, _ in parts.values())).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not bool(each.grad.any())] == []


def test_any_first_books_decode() -> None:
    codes = built("books")
    segment = codes.encode(picture(8, 8))
    first = codes.decode(codes.segment(segment.ids[:, :1], segment.position))
    assert first.shape == (8, 8, 3) and not np.array_equal(first, codes.decode(segment))
    fewer = built("books", encode_books=2)
    assert fewer.sizes == {"image_code.0": 8, "image_code.1": 8} and fewer.encode(picture(8, 8)).ids.shape == (4, 2)
    with pytest.raises(RecipeError, match="encode_books is 4, but the codec has 3"):
        _ = built("books", encode_books=4).sizes


def test_codes_are_tokens_of_a_stream_with_rows_and_columns() -> None:
    codes = built("books")
    segment = codes.encode(picture(8, 12))
    batch = pack([Stream([segment], axes=AXES)], Vocabulary({"text": 5, **codes.sizes}))
    assert batch.num_tokens == 6 and batch.layout.position[0].tolist() == segment.position.tolist()
    assert torch.equal(batch.codes[0] - torch.tensor([5, 13, 21]), segment.ids)


def test_what_was_saved_is_read_again_with_its_config(codes, tmp_path) -> None:
    codes.save(tmp_path / "tokenizers" / "codes")
    again = check(TOKENIZERS.get("image_codes"), {"type": "image_codes", "path": str(tmp_path)}, "test").build()
    assert again.sizes == codes.sizes and again.fingerprint == codes.fingerprint
    assert torch.equal(again.encode(picture(20, 20)).ids, codes.encode(picture(20, 20)).ids)
    codes.save(tmp_path)
    with pytest.raises(CheckpointError, match="is of the type 'image_codes', but the recipe's tokenizer is 'small_codec'"):
        _ = SmallCodecConfig(path=str(tmp_path)).build().sizes
    raw = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps({**raw, "width": 24}))
    with pytest.raises(CheckpointError, match=r"codec.safetensors"):
        codes.load(tmp_path)


@pytest.mark.parametrize(
    "raw", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(raw) -> None:
    with pytest.raises(DataError, match=r"a picture is uint8 \[y, x, 3\], but this is"):
        built().encode(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": None}, r"need a position \[codes, 2\], their row and column; this is none"),
        ({"position": torch.zeros(6, 1, dtype=torch.long)}, r"this is \[6, 1\]"),
        ({"position": torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [1, 1]])}, "6 codes do not fill 2 rows of 2, row by row"),
        ({"ids": torch.zeros(5, 1, dtype=torch.long)}, "5 codes, but positions of 6"),
        ({"ids": torch.full((6, 1), 16)}, "codes must lie from 0 to 15, but reach from 16 to 16"),
        ({"ids": torch.zeros(6, 2, dtype=torch.long)}, r"codes must be \[tokens, 1 to 1 books\], but are \[6, 2\]"),
        ({"ids": None}, "but are no ids"),
    ],
)
def test_codes_that_are_no_picture_are_refused(change, message) -> None:
    codes = built()
    segment = codes.encode(picture(8, 12))
    parts = {"ids": segment.ids, "position": segment.position, **change}
    with pytest.raises(DataError, match=message):
        codes.decode(Segment("image_code", parts["ids"], position=parts["position"]))


def test_codes_without_weights_say_what_trains_them() -> None:
    with pytest.raises(DataError, match="train it by a recipe with the task image_codes"):
        check(TOKENIZERS.get("image_codes"), TINY, "test").build().encode(picture(8, 8))
    with pytest.raises(RecipeError, match=r"max_side \(42\) must be a multiple of patch \(4\)"):
        built(max_side=42)
    with pytest.raises(RecipeError, match="levels.*must be at least 3"):
        check(TOKENIZERS.get("image_codes"), {**TINY, "quantizer": {"type": "fsq", "levels": [2, 2]}}, "test")
    with pytest.raises(RecipeError, match="width.*has no effect: the codec at `path` decides it"):
        built(path="somewhere")
