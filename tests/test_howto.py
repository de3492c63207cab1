"""Every page of docs/howto is followed from top to bottom, on made files and with small models: commands, recipe lines and Python."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import uvicorn
from PIL import Image, ImageDraw

from mmlm.data.audio_files import write_sound
from mmlm.recipe import Recipe
from mmlm.run import train
from mmlm.serving import demo
from mmlm.sound import Sound
from tests.pages import commands, follow, parsed

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "howto"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
SENTENCES = [
    "please leave a message",
    "the number is busy",
    *(
        f"{call} {count}"
        for count in ("one", "two", "three", "four", "five", "six")
        for call in ("the number is", "please call", "thank you")
    ),
]
SHORT = ["train.steps=2", "train.batch_size=2", "train.log_every=1", "data.validate_samples=2"]
DECODER = ["backbone.width=16", "backbone.num_layers=1"]
HELD = ["data.train.0.hold_out=0.3", "data.train.0.validate_share=0.3"]  # of few records a small share may be none
WORDS = ["tokenizers.text.vocabulary_size=300"]
CODEC = "num_books: 2, book_size: 8, width: 16, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1, latent_size: 8, mel_bands: 20"
SMALL_CODEC = [f"tokenizers.codec={{type: small_codec, {CODEC}}}", "task.seconds=0.2", "data.test_samples=2", *HELD]
STEM = ["encoders.vision.channels=[4, 4, 8]", "task.max_tokens=160", "data.test_samples=2"]
PICTURE_TOWER = "{image_size: 32, patch_size: 8, width: 8, layers: 1, heads: 2}"
TOWERS = f"{{size: 8, picture: {PICTURE_TOWER}, text: {{context: 16, width: 8, layers: 1, heads: 2}}}}"
TINY = {  # by what is trained
    "codec.yaml": SMALL_CODEC,
    "voice.yaml": [
        *DECODER, *HELD, "tokenizers.codec.encode_books=2", "tokenizers.phonemes.dictionary=words.txt", "data.test_samples=1",
        "task.max_seconds=4",
    ],
    "mend.yaml": ["task.network={width: 8, num_blocks: 1}", "task.seconds=0.2", "data.test_samples=2"],
    "units.yaml": [
        "tokenizers.units.num_units=4", "tokenizers.units.encoder={type: log_mel, num_bands: 12, context: 0}", "task.hidden=16",
        "data.test_samples=2",
    ],
    "point.yaml": [*DECODER, *STEM],
    "grounded_captioning/quickstart": [*DECODER, *STEM, *WORDS],
    "find.yaml": [f"task.towers.sizes={TOWERS}", "data.test_samples=4"],
    "kinds.yaml": ["data.test_samples=4"],
    "street.yaml": [
        *DECODER, "encoders.lidar.queries={num_queries: 4, num_layers: 1, num_heads: 2, width: 8}", "encoders.lidar.pillars.cell=3.2",
        "tokenizers.sweep.num_tokens=4", "task.requests=2", "data.test_samples=1", "task.max_tokens=60",
    ],
    "tabular/quickstart": [*DECODER, "encoders.cell.hidden=16", "backbone.feed_forward.hidden=16"],
    "birds.yaml": [],
    "solubility.yaml": [*DECODER, "data.test_samples=2", *HELD],
    "words.yaml": [
        "backbone={width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}", *WORDS, "task.context=32",
        "task.test_context=32", "data.test_samples=1",
    ],
    "tune.yaml": ["task.context=32"],
    "three.yaml": [
        *DECODER, *WORDS, "encoders.vision.channels=[4, 4, 8]", "encoders.cell.hidden=16", "tasks.0.context=32", "data.test_samples=2",
    ],
}  # fmt: skip
MEASURED = {
    "runs/quickstart": ["evaluate.seeds=1", "evaluate.shots=[8]", "evaluate.max_queries=16"],
    "runs/birds": ["evaluate.seeds=1", "evaluate.shots=[8]"],
    "runs/three": ["evaluate.shots=[8]", "evaluate.max_queries=16"],
    **dict.fromkeys(("runs/codec", "runs/voice", "runs/mend"), ["evaluate.judges=[]"]),
}


def speech(folder: Path, count: int = 24) -> None:
    """Sounds of half a second."""
    rng = np.random.default_rng(0)
    for number in range(count):
        time_n = np.arange(9600) / 16000
        wave_n = 0.3 * np.sin(2 * np.pi * (200 + 20 * number) * time_n) * (1 + np.sin(30 * time_n)) / 2 + 0.01 * rng.normal(size=9600)
        write_sound(folder / f"{number}.wav", Sound(wave_n.astype(np.float32), 16000))


def pictures(folder: Path, count: int = 24, *, listed: bool = False) -> None:
    """A coloured shape each, with its caption, and boxes in a list."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        color, shape = ("red", "blue", "green")[number % 3], ("circle", "square")[number % 2]
        picture = Image.new("RGB", (48, 48), "white")
        draw, box = ImageDraw.Draw(picture), [8, 8, 28, 28]
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=color)
        picture.save(folder / f"{number}.png")
        caption = f"a {color} {shape}"
        lines.append(json.dumps({"image": f"{number}.png", "caption": caption, "phrases": [{"span": [0, len(caption)], "boxes": [box]}]}))
        if not listed:
            (folder / f"{number}.txt").write_text(caption)
    if listed:
        (folder / "list.jsonl").write_text("\n".join(lines))


def table(folder: Path) -> None:
    lines = (FOLDER.parents[1] / "recipes/tabular/penguins.csv").read_text().splitlines()
    (folder / "birds.csv").write_text("\n".join(lines) + "\n")
    head, *rows = [line.split(",") for line in lines[::40]]
    rows = [row for row in rows if "" not in row]
    (folder / "new.csv").write_text("\n".join(",".join(row[1:]) for row in [head, *rows]) + "\n")


def texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    for number in range(24):
        (folder / "texts" / f"{number}.txt").write_text(f"Once upon a time there were {number} kings. " * 12)


def tabular(folder: Path) -> None:
    table(folder)


def text_to_speech(folder: Path) -> None:
    if shutil.which("flite") is None:
        pytest.skip("needs: apt-get install flite")
    (folder / "voice").mkdir()
    for number, sentence in enumerate(SENTENCES):
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", f"voice/sentence_{number}.wav"], cwd=folder, check=True, timeout=60)
    lines = [f"sentence_{number}|{sentence}" for number, sentence in enumerate(SENTENCES)]
    (folder / "voice/metadata.csv").write_text("\n".join(lines) + "\n")
    words, pocketsphinx = {word for sentence in SENTENCES for word in sentence.split()}, pytest.importorskip("pocketsphinx")
    lines = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    kept = [line for at, line in enumerate(lines) if line.split()[0] in words or at % 1000 == 0]  # whose rules are learned in a moment
    (folder / "words.txt").write_text("\n".join(kept) + "\n")


def enhancement(folder: Path) -> None:
    speech(folder / "clean")
    for kind in ("rain", "street", "fan", "crowd"):
        speech(folder / "noise" / kind, 2)
    shutil.copy(folder / "noise/rain/0.wav", folder / "noisy.wav")


def codec_and_units(folder: Path) -> None:
    speech(folder / "sounds")


def grounded_captioning(folder: Path) -> None:
    pictures(folder / "pictures", listed=True)
    shutil.copy(folder / "pictures/0.png", folder / "photo.png")


def image_text(folder: Path) -> None:
    pictures(folder / "photos")


def picture_classes(folder: Path) -> None:
    for kind in ("cat", "dog"):
        pictures(folder / "kinds" / kind)
    shutil.copy(folder / "kinds/cat/0.png", folder / "photo.png")


def lidar(folder: Path) -> None:
    (folder / "sweeps").mkdir()
    for number in range(12):
        rng = np.random.default_rng(number)
        points_n4 = (rng.uniform(-1, 1, (3000, 4)) * [20, 20, 1, 1]).astype(np.float32)
        points_n4.tofile(folder / f"sweeps/{number}.bin")
        place = {"x": 8.0 + number, "y": 0.0 + number, "z": 0.0}
        psr = {"position": place, "scale": {"x": 4.0, "y": 2.0, "z": 1.5}, "rotation": {"x": 0, "y": 0, "z": 0.0}}
        (folder / f"sweeps/{number}.json").write_text(json.dumps([{"obj_type": "Car", "psr": psr}]))


def molecules(folder: Path) -> None:
    pytest.importorskip("rdkit")
    rings, tails = ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CC1", "c1ccsc1", "C1CCNC1"), ("C", "O", "CC", "CN", "C(=O)O", "CCO")
    rows = [f"{ring}{tail},{-len(ring + tail) / 10}" for ring in rings for tail in tails]
    (folder / "solubility.csv").write_text("\n".join(["smiles,logS", *rows, "CCOC(=O)c1ccccc1,-1.5", "CCO,1.1"]) + "\n")


def text(folder: Path) -> None:
    texts(folder)


def several_tasks(folder: Path) -> None:
    texts(folder)
    pictures(folder / "photos")
    table(folder)


def encode(folder: Path) -> None:
    speech(folder / "sounds", 2)
    pictures(folder / "photos")


def serve_and_demo(folder: Path) -> None:
    """A run of words, as the page on texts makes it."""
    texts(folder)
    own = [
        "name=words",
        "data.train=[{type: text_files, path: texts, hold_out: 0.1, validate_share: 0.1}]",
        "data.validate=[]",
        "data.test=[]",
    ]
    train(Recipe.read("probes/text", [*own, *SHORT, *TINY["words.yaml"]]))


def small(words: list[str]) -> list[str]:
    """What makes a command of a page small."""
    verb, what = words[0], words[1]
    if verb in ("train", "preview", "validate"):
        return [*SHORT, *TINY[what]]
    if verb == "evaluate":
        return MEASURED.get(what, [])
    return []


class Served:
    """A server in place of the one that would run until it is stopped."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server: uvicorn.Server | None = None

    def run(self, app: object, **options: object) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        if self.server is not None:
            self.server.should_exit = True
            self.thread.join(20)


@pytest.fixture
def served(monkeypatch):
    one = Served()
    monkeypatch.setattr("uvicorn.run", one.run)
    yield one
    one.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_followed(name, tmp_path, monkeypatch, capsys, served):
    monkeypatch.chdir(tmp_path)
    if name not in ("tabular", "several_tasks"):  # the tables of packages are read once, not once a test
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mmlm.serving.demo.launch", lambda uses, **options: print(demo.build(uses)))
    globals()[name](tmp_path)
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    said = follow(re.sub(r"\b8000\b", str(served.port), page), small, capsys)
    assert len(said) >= 3 and all(said.values())


def test_every_command_that_a_page_shows_is_taken_and_the_list_names_every_page():
    pages = {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}
    for page in pages.values():
        for words in commands(page):
            parsed([word for word in words if word != "&"])
    named = set(re.findall(r"\((\w+)\.md\)", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert named == set(PAGES) and len(PAGES) == 13
    assert not [name for name, page in pages.items() if "OUTPUT" in page]
