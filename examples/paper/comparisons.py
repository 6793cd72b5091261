"""What the scripts that read comparisons have in common."""

import argparse
from pathlib import Path

COLORS = ("#5f6b7a", "#2a78b8", "#3a9a52", "#d9480f", "#8250a8", "#b8860b")


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Let the folders of comparisons be given."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help="of a comparison")


def check_folders(parser: argparse.ArgumentParser, folders: list[Path], table: str) -> None:
    """Exit with an error if two folders have one name, or one has no ``table``."""
    if len({folder.name for folder in folders}) < len(folders):
        parser.error("the folders must have different names: give those of one preset")
    for folder in folders:
        if not (folder / table).is_file():
            parser.error(f"{folder} has no {table}: give the folders of comparisons (--compare.out)")
