"""What several files say of the package agrees."""

from configparser import ConfigParser
from pathlib import Path

import yaml

import scoresde

ROOT = Path(__file__).parents[1]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def test_the_citation_has_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (scoresde.__version__, SETUP["metadata"]["license"])


def test_every_requirement_has_a_lowest_version():
    requirements = SETUP["options"]["install_requires"] + SETUP["options.extras_require"]["test"]
    for requirement in requirements.split("\n"):
        if requirement and not requirement.startswith("#"):
            assert requirement.count(">=") == 1, requirement
            assert "," not in requirement
