"""`mmlm encode` on 1,000 pictures, sounds and rows beside plain loops over the packages: same files, same weights, float32, one thread.

Items a second of CPU time, files read and decoded by both; MMLM_BENCH_ITEMS asks for fewer items. The plain loop is what a person writes
first: pictures in batches of 32 through timm or open_clip, sounds one after the other through torchaudio's HuBERT of base size, rows one
after the other through a Llama of transformers with a mean over its states. Both have to give the same vectors. Goal: no slower than the
loop in float32, with the margin of all benches; bfloat16 is shown beside it where the machine multiplies it faster.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

import mmlm
from mmlm.cli import main
from mmlm.data.audio_files import write_sound
from mmlm.data.table_reader import read_table
from mmlm.kernels.dispatch import multiplies_bf16_faster
from mmlm.sound import Sound
from mmlm.tokenizers.table_rows import row_sentences
from tests.bench.measure import MARGIN
from tests.bench.test_pictures import photograph

pytestmark = [pytest.mark.bench, pytest.mark.slow]
ITEMS = int(os.environ.get("MMLM_BENCH_ITEMS", "1000"))
BATCH = 32


def timed(run):
    """(what it gives, CPU seconds)."""
    begin = time.process_time()
    found = run()
    return found, time.process_time() - begin


def beside(what, encoder, items, loop, least=0.9999):
    """Vectors of the encoder; prints items a second of it and of the loop, asserts that both give the same, and the goal."""
    torch.set_num_threads(1)
    embedder = mmlm.encoder(encoder)
    embedder.encode(items[:2])  # both have run once before the clock starts
    loop(2)
    theirs, plain = timed(lambda: loop(None))
    ours, fast = timed(lambda: embedder.encode(items, batch_size=BATCH))
    speeds = {"plain loop": plain, "mmlm fp32": fast}
    if not isinstance(items[0], dict) and multiplies_bf16_faster(torch.device("cpu")):
        speeds["mmlm bf16"] = timed(lambda: embedder.encode(items, batch_size=BATCH, precision="bf16"))[1]
    cosine = float(mmlm.similarity(ours, theirs).diagonal().min())
    told = ", ".join(f"{name} {len(items) / seconds:.1f}" for name, seconds in speeds.items())
    print(f"\n{what}: {len(items)} items; least cosine {cosine:.6f}; a second of CPU: {told}; {plain / fast:.2f} times as fast")
    assert ours.shape == theirs.shape and cosine > least
    assert plain / fast > 1 / MARGIN
    return ours


def rows_of(path):
    table = read_table(path)
    texts = {column.name: table.texts(column.name) for column in table.columns}
    return [{name: cells[number] for name, cells in texts.items()} for number in range(table.num_rows)]


def the_verb_gives(vectors, encoder, words, folder):
    """The command line writes the same."""
    assert main(["encode", encoder, *words, "--batch-size", str(BATCH), "--output", str(folder / "v.npy")]) == 0
    assert np.allclose(np.load(folder / "v.npy"), vectors, atol=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    shown = [Image.fromarray(photograph(number, 256, 320)) for number in range(min(ITEMS, 20))]
    for number in range(ITEMS):
        shown[number % len(shown)].save(folder / f"{number}.jpg", quality=90 - number // len(shown) % 30)
    return [str(folder / f"{number}.jpg") for number in range(ITEMS)]


@pytest.mark.parametrize(("package", "model"), [("timm", "vit_small_patch16_224"), ("open_clip", "ViT-B-32")])
def test_pictures(package, model, pictures, tmp_path):
    from PIL import Image

    pytest.importorskip(package)
    torch.manual_seed(0)
    made = mmlm.encoder(package, model=model).encoder
    torch.save(made.network.state_dict(), tmp_path / "weights.pt")
    network, transform = made.network, made.transform
    call = network.encode_image if package == "open_clip" else network
    network.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def loop(count):
        found, files = [], pictures[:count]
        for start in range(0, len(files), BATCH):
            x_bcyx = torch.stack([transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]])
            found.append(call(x_bcyx))
        return torch.cat(found).numpy()

    name = f"{{type: {package}, model: {model}, path: {tmp_path / 'weights.pt'}}}"
    vectors = beside(f"pictures, {package} {model}", name, pictures, loop, least=0.999)
    the_verb_gives(vectors[:3], name, pictures[:3], tmp_path)


def test_sounds(tmp_path):
    torchaudio, soundfile = pytest.importorskip("torchaudio"), pytest.importorskip("soundfile")
    torch.manual_seed(0)
    network = torchaudio.models.hubert_base().eval()
    torch.save(network.state_dict(), tmp_path / "hubert.pt")
    rng, files = np.random.default_rng(0), []
    for number in range(ITEMS):
        files.append(str(tmp_path / f"{number}.wav"))
        seconds = rng.uniform(0.5, 2.0)  # whole frames of 20 ms, which both see alike
        write_sound(files[-1], Sound(0.1 * rng.normal(size=320 * round(50 * seconds)).astype(np.float32), 16_000))

    @torch.no_grad()
    def loop(count):
        found = []
        for file in files[:count]:
            wave_1n = torch.nn.functional.pad(torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None], (0, 80))
            found.append(network.extract_features(wave_1n)[0][-1][0].mean(0))
        return torch.stack(found).numpy()

    name = f"{{type: wav2vec2, path: {tmp_path / 'hubert.pt'}}}"
    the_verb_gives(beside("sounds, torchaudio hubert_base", name, files, loop)[:3], name, files[:3], tmp_path)


def test_rows(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("pandas")
    from mmlm.tokenizers.config import TextConfig
    from mmlm.tokenizers.text import TextTokenizer

    rng = np.random.default_rng(0)
    lines = [
        f"{rng.integers(18, 90)},{rng.normal():.2f},{('Rome', 'Oslo', 'Lima')[rng.integers(3)]},{rng.integers(1000)}" for _ in range(ITEMS)
    ]
    (tmp_path / "people.csv").write_text("\n".join(["age,score,city,visits", *lines]) + "\n")
    rows = rows_of(tmp_path / "people.csv")
    texts, folder = [row_sentences(row) for row in rows], tmp_path / "llama"
    tokenizer = TextTokenizer(TextConfig(vocabulary_size=400)).fit(texts[:50])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
    )
    network = transformers.LlamaForCausalLM(config).eval()
    network.save_pretrained(folder)
    tokenizer.save(folder)

    @torch.no_grad()
    def loop(count):
        found = []
        for text in texts[:count]:
            ids_1t = torch.tensor([tokenizer.core.encode(text).ids])
            found.append(network.model(ids_1t, use_cache=False).last_hidden_state[0].mean(0))
        return torch.stack(found).numpy()

    vectors = beside("rows, transformers Llama of 6 layers, width 256", str(folder), rows, loop)
    the_verb_gives(vectors, str(folder), [str(tmp_path / "people.csv")], tmp_path)
