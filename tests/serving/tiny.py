"""A tiny run of each task that people ask by hand, trained for a few steps on data made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from mmlm.data.audio_files import write_sound
from mmlm.recipe import Recipe
from mmlm.run import train
from mmlm.sound import Sound
from tests.tasks.untrained import save_codec

TRAIN = "train: {steps: 2, batch_size: 2, log_every: 1}\n"
PICTURES = [
    "task.constrained=true", "task.max_tokens=20", "backbone.width=16", "backbone.num_layers=1", "encoders.vision.channels=[4, 4, 8]",
    "train.steps=2", "train.batch_size=2", "train.validate_every=0", "train.sample_every=0", "data.validate=[]",
]  # fmt: skip
SWEEPS = [
    "task.kinds={grounded_caption: 1, caption: 1, expression: 1, class: 1, question: 1}", "backbone.width=32", "backbone.num_layers=1",
    "tokenizers.sweep.num_tokens=4", "encoders.lidar.pillars.channels=4", "encoders.lidar.pillars.cell=1.6", "task.max_tokens=48",
    "encoders.lidar.queries={num_queries: 4, num_layers: 1, num_heads: 2, width: 16}", "train.steps=2", "train.batch_size=2",
    "train.validate_every=0", "train.sample_every=0", "data.test=[{type: street, split: test, count: 3}]",
]  # fmt: skip
TASKS = {
    "text": """
task: {type: text, context: 64}
data: {train: [{type: text_files, path: FOLDER/texts}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: SMALL
""",
    "tabular": """
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
data: {train: [{type: structural_tables}]}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone: {width: 16, num_layers: 1, pattern: [{mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}]}
""",
    "tabular_text": """
task: {type: tabular_text, context: 1024, episode: {num_rows: 8, max_shots: 6, max_columns: 3, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: SMALL
""",
    "regression_transformer": """
task: {type: regression_transformer, properties: [size]}
objective: {type: permutation, alternate_every: 2}
data: {train: [{type: molecule_manifest, path: FOLDER/compounds.jsonl, hold_out: 0.2, validate_share: 0.2}]}
tokenizers: {sequence: {type: molecules}, numbers: {type: numbers, whole_digits: 1, decimals: 1}}
backbone: SMALL
""",
    "picture_classes": """
task: {type: picture_classes, encoder: {type: timm, model: test_vit, image_size: 32}}
data: PICTURES
""",
    "image_codes": """
task: {type: image_codes, side: 16}
data: PICTURES
tokenizers:
  codes: {type: image_codes, width: 8, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1, latent_size: 8,
    quantizer: {type: vq, num_books: 2, book_size: 8}}
""",
    "image_text": """
task:
  type: image_text
  towers:
    type: open_clip
    sizes: {size: 8, picture: {image_size: 32, width: 16, layers: 1, heads: 2}, text: {context: 16, width: 16, layers: 1, heads: 2}}
data: PICTURES
""",
    "codec": """
task: {type: codec, seconds: 0.2, windows: [64, 256]}
data: SPEECH
tokenizers:
  codec: {type: small_codec, width: 8, latent_size: 8, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1, num_books: 4, book_size: 16}
""",
    "robust_units": """
task: {type: robust_units, seconds: 0.5, rounds: 1, hidden: 16}
data: SPEECH
tokenizers: {units: {type: units, num_units: 8}}
""",
    "enhancement": """
task: {type: enhancement, seconds: 0.2, NOISY, network: {width: 8, num_blocks: 1}}
data: SPEECH
""",
    "tts": """
task: {type: tts, max_seconds: 3, join: [1, 1], order: delay}
data: SPEECH
tokenizers: {phonemes: {type: phonemes, dictionary: FOLDER/words.txt}, codec: {type: small_codec, path: FOLDER/codec}}
heads: {codes: {type: codebooks}}
backbone: SMALL
""",
    "gense_units": """
task: {type: gense_units, NOISY, seconds: 0.4}
data: SPEECH
tokenizers: {units: {type: units, num_units: 8}}
heads: {language_model: {type: language_model, ranges: [unit]}}
backbone: SMALL
""",
    "gense_codes": """
task: {type: gense_codes, units_run: FOLDER/runs/gense_units, base: 64, NOISY, seconds: 0.4}
data: SPEECH
tokenizers: {units: {type: units, path: FOLDER/runs/gense_units}, codec: {type: small_codec, path: FOLDER/codec}}
heads: {codes: {type: codebooks}}
backbone: SMALL
""",
}
PARTS = {
    "SMALL": "{width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}",
    "NOISY": "degrade: [{type: add_noise, snr_db: [0, 0], noises: [{type: generated, kinds: [white]}]}]",
    "SPEECH": "{train: [{type: speech_manifest, path: FOLDER/said.jsonl, hold_out: 0.2, validate_share: 0.2, split_by: utterance}]}",
    "PICTURES": "{train: [{type: picture_folder, path: FOLDER/pictures, captions: folders, hold_out: 0.25, validate_share: 0.25}]}",
}
SHIPPED = {"grounded": ("grounded_captioning/quickstart", PICTURES), "sweeps": ("lidar/quickstart", SWEEPS)}


def write_data(folder: Path) -> None:
    """What the runs are trained on."""
    draws = np.random.default_rng(0)
    (folder / "texts").mkdir(parents=True)
    lines = [{"text": f"The {number}. line says how many lines came before it: {number}."} for number in range(24)]
    (folder / "texts" / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rings, tails = ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CC1", "c1ccsc1", "C1CCNC1"), ("C", "O", "CC", "CN")
    found = [{"smiles": ring + tail, "properties": {"size": len(ring + tail) / 10}} for ring in rings for tail in tails]
    (folder / "compounds.jsonl").write_text("\n".join(map(json.dumps, found)))
    for name, level in (("bright", 220), ("dark", 30)):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(level + draws.normal(0, 9, (30, 40, 3)), 0, 255).astype(np.uint8)
            Pictures.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    said = []
    for number in range(12):
        time = np.arange(12_000 + 160 * number) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * time) * (1 + np.sin(30 * time)) / 2
        write_sound(folder / "sounds" / f"{number:02}.wav", Sound(wave.astype(np.float32), 16_000))
        said.append({"audio": f"sounds/{number:02}.wav", "text": ("a sea", "see a bee", "be a sea bee")[number % 3]})
    (folder / "said.jsonl").write_text("\n".join(map(json.dumps, said)))
    (folder / "words.txt").write_text("a AH\nsea S IY\nsee S IY\nbe B IY\nbee B IY\n")
    save_codec(folder / "codec")


def tiny_recipe(kind: str, folder: Path, *changes: str) -> Recipe:
    """The recipe of a task, its data being in the folder."""
    if kind in SHIPPED:
        name, own = SHIPPED[kind]
        return Recipe.read(name, [*own, *changes])
    text = f"schema: 1\nname: {kind}{TASKS[kind]}{TRAIN}"
    for name, part in {**PARTS, "FOLDER": str(folder)}.items():
        text = text.replace(name, part)
    return Recipe.read(text, changes)


def tiny_run(kind: str, folder: Path) -> Path:
    """The finished run of a task, its data being in the folder."""
    output = folder / "runs" / kind
    train(tiny_recipe(kind, folder, f"output={output}"))
    return output


def made_in(folder: Path, kinds: list[str]) -> list[Path]:
    """Runs of these tasks."""
    write_data(folder)
    if "gense_codes" in kinds:
        tiny_run("gense_units", folder)
    return [tiny_run(kind, folder) for kind in kinds]
