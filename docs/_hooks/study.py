"""Adds the pages of the studies' results, with their pictures, to the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "study" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """study/results/NAME/small.md -> study/NAME/small.html, PNGs likewise, and the summary -> study/small.html."""
    for path in sorted([*RESULTS.glob("small.md"), *RESULTS.glob("*/small.md"), *RESULTS.glob("*/small-*.png")]):
        place = path.relative_to(RESULTS).as_posix()
        files.append(File.generated(config, f"study/{place}", abs_src_path=str(path)))
    return files
