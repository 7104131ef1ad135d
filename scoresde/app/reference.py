"""The table of all settings, as Markdown."""

from __future__ import annotations

from scoresde.app.config import SECTIONS, keys
from scoresde.app.config_files import summary, to_yaml
from scoresde.app.presets import PRESETS


def config_reference(section: str | None = None) -> str:
    """Return a table of all keys and presets, or the keys of one section.

    Raises:
        UnknownNameError: ``section`` is not a section.
    """
    listed = list(keys(section))
    lines = ["# Settings", "", "A YAML file has one mapping per section; an override is `section.key=value`."]
    for name in SECTIONS if section is None else (section,):
        lines += ["", f"## {name}", "", summary(SECTIONS[name]), ""]
        lines += ["| key | default | accepts | meaning |", "| --- | --- | --- | --- |"]
        ours = (one for one in listed if one.key.startswith(f"{name}."))
        lines += [f"| `{one.key}` | `{to_yaml(one.default)}` | {one.accepts} | {one.text} |" for one in ours]
    if section is None:
        lines += ["", "## Presets", "", "A preset applies by the data source; a file and overrides win over it.", ""]
        lines += ["| preset | data.source | settings |", "| --- | --- | --- |"]
        for name, preset in PRESETS.items():
            pairs = (f"`{s}.{k}={to_yaml(v)}`" for s, block in preset.settings.items() for k, v in block.items())
            lines.append(f"| {name} | {', '.join(preset.sources)} | {' '.join(pairs)} |")
    return "\n".join(lines) + "\n"
