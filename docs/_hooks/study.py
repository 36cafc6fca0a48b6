"""Pages of the studies' results become pages of the site, with their pictures; they stay where results are."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "study" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """study/results/NAME/small.md -> study/NAME/small.html, and the same of PNGs."""
    for path in sorted([*RESULTS.glob("*/small.md"), *RESULTS.glob("*/small-*.png")]):
        files.append(File.generated(config, f"study/{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files
