"""Adds the pages of the studies' results, with their pictures, to the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "study" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """study/results/NAME/small.md -> study/NAME/small.html, and PNGs likewise."""
    for path in sorted([*RESULTS.glob("*/small.md"), *RESULTS.glob("*/small-*.png")]):
        files.append(File.generated(config, f"study/{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files
