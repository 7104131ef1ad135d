"""The choices of how files are read."""

from __future__ import annotations

from typing import Literal

#: order of an array's axes
Layout = Literal["channels-first", "channels-last", "no-channels"]
#: where the classes of a folder of images come from
LabelsFrom = Literal["folders", "names", "none"]
