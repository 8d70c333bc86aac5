"""Prints the requirements of the package, with those of the extras named on the command line, one on each line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[1:])]
print(*(requirement for group in groups for requirement in group), sep="\n")
