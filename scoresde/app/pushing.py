"""The ``push`` command: a run's model on the hub, with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoresde.app.runs import RunFolder
from scoresde.app.terminal import say
from scoresde.errors import RunFolderError
from scoresde.interop import push_to_hub, save_with_card

MOST_PICTURES = 3


def card_of(run: RunFolder) -> dict[str, Any]:
    """Return what a run tells of its model, for the card."""
    config, note = run.config, run.meta["stages"].get("train", {})
    found: dict[str, Any] = {
        "name": run.path.resolve().name,
        "data": config.data.source,
        "training": {"steps": run.step, "batch size": config.train.batch_size, "optimizer": config.train.optimizer},
    }
    if "seconds" in note:
        found["training"]["seconds"] = round(note["seconds"])
    path = run.path / "evaluation.json"
    if path.exists():
        try:
            evaluation = json.loads(path.read_text(encoding="utf-8"))
            held, unit = evaluation["held_out"], evaluation["unit"]
            error = "" if held["stderr"] is None else f" ± {held['stderr']:.3f}"
            solver = held.get("largest_solver_error")
            most = "" if solver is None else f", error of the solver at most {solver:.2g}"
            found["likelihood"] = f"{held['mean']:.3f}{error} {unit} ({held['n']} held-out items{most})"
        except (ValueError, KeyError, TypeError) as error:
            expected = "a run with an intact evaluation.json of `scoresde evaluate`"
            raise RunFolderError("run", f"{path} ({error!r})", expected) from error
    return found


def push(run: RunFolder, repo_id: str, *, license: str | None, private: bool, out: Path | None) -> str:
    """Upload a run's model, or write what would be uploaded.

    Args:
        run: The run.
        repo_id: ``"user/model"``.
        license: Identifier of the licence, for the card.
        private: Whether a new repository is private.
        out: Folder to write instead of an upload. None: upload.

    Returns:
        The address or the folder.
    """
    model, card = run.model("cpu"), card_of(run) | {"license": license}
    pictures = [path for path in run.pictures() if path.name.startswith("samples")][:MOST_PICTURES]
    if out is not None:
        where = str(save_with_card(model, out, pictures, **card))
        say(f"Wrote what `push` would upload to {repo_id}: {where}")
        return where
    where = push_to_hub(model, repo_id, private=private, pictures=pictures, **card)
    say(f"The model and its card are at {where}")
    return where
