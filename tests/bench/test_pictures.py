"""Pictures read and turned into vectors, beside Pillow, timm and open_clip: same files, same weights, one thread, CPU time.

Goals, each asserted with a margin of 1.3: a JPEG that is wanted smaller is read at least 1.7 times as fast as Pillow reads and resizes it;
looking again at the pictures of a list when a run begins costs at most a tenth of decoding them; `mmlm.encoder(...).encode` in bfloat16
is at least 3 times as fast as a plain loop of the package in float32, at a cosine of 0.999, and no slower than that loop in bfloat16, on a
machine with AMX, 1.7 times with AVX512-BF16; elsewhere in float32 no slower. Memory does not grow with the number of files.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import mmlm
from mmlm.data.config import PictureManifestConfig
from mmlm.data.picture_files import read_picture
from mmlm.kernels.dispatch import multiplies_bf16_faster
from mmlm.tokenizers.image_patches import resized
from tests.bench.measure import MARGIN, compare, peak_mb

Image = pytest.importorskip("PIL.Image")
pytestmark = [pytest.mark.bench, pytest.mark.slow]
BATCH = 8


def photograph(seed: int, height: int = 480, width: int = 640) -> np.ndarray:
    """Colours that change slowly, with finer and finer detail of less and less contrast, as photographs have it."""
    rng = np.random.default_rng(seed)
    found = np.full((height, width, 3), 128.0)
    for size in (4, 8, 16, 32, 64, 128):
        coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        found += (np.asarray(coarse, dtype=np.float64) - 128) * 2 / size**0.5
    return np.clip(found, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(BATCH):
        Image.fromarray(photograph(number)).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


@pytest.mark.parametrize("longest", [80, 160, 224, 320])
def test_jpegs_that_are_wanted_smaller_beside_pillow(files, longest):
    size = (longest * 3 // 4, longest)

    def pillow():
        return [np.asarray(Image.open(file).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)) for file in files]

    def ours():
        return [resized(read_picture(file, longest), *size) for file in files]

    for one, other in zip(pillow(), ours(), strict=True):
        assert one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 3
    found = compare({"pillow": pillow, "mmlm": ours}, seconds=2.0)
    ratio = found["pillow"] / found["mmlm"]
    print(f"\n640 x 480 to {longest} pixels: {found['mmlm'] / BATCH:.2f} ms, Pillow {found['pillow'] / BATCH:.2f} ms, {ratio:.2f} times")
    assert ratio > 1.7 / MARGIN


def test_a_list_is_looked_at_again_in_a_tenth_of_the_time_that_decoding_takes(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = tmp_path / "list.jsonl"
    thing = {"label": "x", "box": [10, 20, 300, 400]}
    listed.write_text("\n".join(json.dumps({"image": str(file), "things": [thing]}) for file in files * 8))
    config = PictureManifestConfig(path=str(listed), hold_out=0)
    config.build()  # the first time all are decoded

    def decode():
        return [np.asarray(Image.open(file).convert("RGB")) for file in files * 8]

    found = compare({"look": lambda: config.build().everything(), "decode": decode}, rounds=3, seconds=2.0)
    print(f"\n{8 * BATCH} pictures of 640 x 480: looked at in {found['look']:.1f} ms, decoded in {found['decode']:.1f} ms")
    assert found["look"] < found["decode"] / 10 * MARGIN


def package_loop(embedder, pictures, dtype):
    """How vectors are made with the package alone, a batch at a time; the call without arguments."""
    encoder = embedder.encoder
    network = copy.deepcopy(encoder.network).to(dtype)
    call = network.encode_image if hasattr(network, "encode_image") else network

    @torch.no_grad()
    def run():
        found = []
        for start in range(0, len(pictures), BATCH):
            x_bchw = torch.stack([encoder.transform(Image.fromarray(each)) for each in pictures[start : start + BATCH]])
            found.append(call(x_bchw.to(dtype)).float())
        return torch.cat(found)

    return run


@pytest.mark.parametrize(("name", "model"), [("timm", "vit_small_patch16_224"), ("open_clip", "ViT-B-32")])
def test_vectors_of_pictures_beside_the_package(name, model):
    pytest.importorskip(name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    embedder = mmlm.encoder(name, model=model)
    pictures = [photograph(number, 256, 320) for number in range(BATCH)]
    sides = {kind: package_loop(embedder, pictures, dtype) for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    true_bd = sides["fp32"]()
    for precision, least in (("fp32", 0.999999), ("bf16", 0.999)):
        mine_bd = torch.from_numpy(embedder.encode(pictures, batch_size=BATCH, precision=precision))
        cosine = float(torch.cosine_similarity(mine_bd, true_bd, dim=1).min())
        print(f"\n{model}, {precision}: least cosine {cosine:.6f}", end="")
        assert cosine > least
    contestants = {f"{name} {kind}": run for kind, run in sides.items()}
    for kind in sides:
        contestants[f"mmlm {kind}"] = lambda kind=kind: embedder.encode(pictures, batch_size=BATCH, precision=kind)
    found = compare(contestants, rounds=3, seconds=0)
    print("; pictures a second: " + ", ".join(f"{kind} {len(pictures) / ms * 1e3:.1f}" for kind, ms in found.items()))
    assert found[f"{name} fp32"] / found["mmlm fp32"] > 1 / MARGIN
    if multiplies_bf16_faster(torch.device("cpu")):
        least = 3.0 if torch.cpu._is_amx_tile_supported() else 1.7
        assert found[f"{name} fp32"] / found["mmlm bf16"] > least / MARGIN
        assert found[f"{name} bf16"] / found["mmlm bf16"] > 1 / MARGIN


def test_memory_does_not_grow_with_the_number_of_files(files):
    pytest.importorskip("timm")
    torch.set_num_threads(1)
    embedder = mmlm.encoder("timm", model="test_vit")
    few, many = files, files * 16

    def run(items):
        return lambda: embedder.encode(items, batch_size=BATCH)

    run(few)()
    found = {len(items): peak_mb(run(items)) for items in (few, many)}
    held = len(many) * 640 * 480 * 3 / 2**20
    print(f"\npeak memory of files: {found}; all of them decoded take {held:.0f} MB")
    assert found[len(many)] - found[len(few)] < held / 4
