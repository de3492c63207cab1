"""mmlm: one decoder backbone that reads and writes every modality.

`import mmlm` loads neither torch nor any other heavy package; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "encoders").is_dir():
    __path__.append(str(_root))  # in a checkout, mmlm.tokenizers, .encoders, .heads and .kernels lie beside this package

_LAZY = {
    "Recipe": "mmlm.recipe",
    "train": "mmlm.run",
    "evaluate": "mmlm.run",
    "load": "mmlm.interop.load",
    "encoder": "mmlm.embedding",
    "load_tokenizer": "mmlm.run",
    "Index": "mmlm.retrieval.index",
    "similarity": "mmlm.analysis.retrieval",
    "Speaker": "mmlm.speaking",
    "enhance": "mmlm.enhancing",
    "describe": "mmlm.describing",
    "describe_sweeps": "mmlm.describing_sweeps",
    "classify": "mmlm.classifying",
    "Designer": "mmlm.designing",
    "Vectorizer": "mmlm.bridges.scikit_learn",
    "TabularPredictor": "mmlm.predictor",
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mmlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
