"""Maps the folders of the checkout to packages: mmlm/ as it is, the folders beside it as mmlm.<folder>."""

from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
BESIDE = [name for name in ("tokenizers", "encoders", "heads", "kernels", "recipes", "demos") if (root / name).is_dir()]


def folders(top: str) -> list[str]:
    """`top` and every folder below it that holds a file, as dotted names."""
    found = {path.parent for path in (root / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return sorted({top, *(".".join(path.relative_to(root).parts) for path in found)})


setup(
    packages=[*folders("mmlm"), *(f"mmlm.{name}" for top in BESIDE for name in folders(top))],
    package_dir={"mmlm": "mmlm", **{f"mmlm.{top}": top for top in BESIDE}},
)
