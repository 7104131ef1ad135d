"""The table of all settings, as Markdown."""

from __future__ import annotations

from scoresde.app.config import SECTIONS, keys
from scoresde.app.config_files import summary, to_yaml
from scoresde.app.presets import PRESETS


def config_reference() -> str:
    """Return a table of all keys, and one of the presets."""
    lines = ["# Settings", "", "A YAML file has one mapping per section; an override is `section.key=value`."]
    for section, cls in SECTIONS.items():
        lines += ["", f"## {section}", "", summary(cls), ""]
        lines += ["| key | default | accepts | what it does |", "| --- | --- | --- | --- |"]
        lines += [f"| `{one.key}` | `{to_yaml(one.default)}` | {one.accepts} | {one.text} |" for one in keys(section)]
    lines += ["", "## Presets", "", "A preset applies by the data source; a file and overrides win over it.", ""]
    lines += ["| preset | data.source | settings |", "| --- | --- | --- |"]
    for name, preset in PRESETS.items():
        pairs = (f"`{s}.{k}={to_yaml(v)}`" for s, block in preset.settings.items() for k, v in block.items())
        lines.append(f"| {name} | {', '.join(preset.sources)} | {' '.join(pairs)} |")
    return "\n".join(lines) + "\n"
