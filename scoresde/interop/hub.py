"""The hub of Hugging Face: models up and down, with a card.

A model's repository has the files of :meth:`ScoreModel.save_pretrained`, a README.md (the card), and pictures.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, CheckpointError, DTypeError
from scoresde.extras import optional
from scoresde.files import atomic_folder
from scoresde.likelihood import BitsPerDim
from scoresde.models import ScoreModel
from scoresde.models.pretrained import FILES, is_hub_name
from scoresde.nets.description import class_needed, describe_net
from scoresde.version import __version__

CARD = "README.md"
TAGS = ("score-based-generative-modeling", "diffusion", "score-sde")


def _reason(error: Exception) -> str:
    """Return the first words of an error's text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@checked
def download(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a model of the hub, from its cache if it is there.

    Args:
        name: ``"user/model"``.
        revision: Branch, tag or commit. None: the newest.
        token: Token for private models. None: that of the machine.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: There is no model of this name, or no network and none in the cache.
    """
    library = optional("huggingface_hub", "hub")
    try:
        found = library.snapshot_download(name, revision=revision, token=token, allow_patterns=list(FILES))
    except (OSError, ValueError) as error:  # its errors are of these kinds
        got = f"{name}, which is no folder, and not on the hub or in its cache ({_reason(error)})"
        raise CheckpointError("folder", got, "a folder with a model, or the name of one on the hub") from error
    return Path(found)


@checked
def model_card(
    model: ScoreModel,
    *,
    name: str = "A score model",
    license: str | None = None,
    data: str | None = None,
    likelihood: str | BitsPerDim | None = None,
    pictures: Sequence[str] = (),
    training: Mapping[str, object] | None = None,
) -> str:
    """Return the text of a model's card, in Markdown with a head in YAML.

    Args:
        model: The model.
        name: Its name, the title.
        license: Identifier of the licence of the weights, such as "mit". None: the field is left out, as the authors
            must choose it.
        data: Name of the training data.
        likelihood: Bits/dim of held-out data, a result of :func:`scoresde.bits_per_dim`, or a line of text.
        pictures: Names of pictures beside the card.
        training: Settings of the training, by name.
    """
    if not all(isinstance(picture, str) for picture in pictures):
        raise DTypeError("pictures", "other values", "names of pictures, each a str")
    weights = sum(parameter.numel() for parameter in model.parameters())
    head = ["---", "library_name: scoresde", *([] if license is None else [f"license: {license}"])]
    head += ["tags:", *(f"- {tag}" for tag in TAGS)]
    head += [] if data is None else ["datasets:", f"- {data}"]
    described = describe_net(model.net)
    rows = {
        "network": f"{described.get('name', described.get('class'))}, {weights:,} weights",
        "process": repr(model.sde),
        "prediction": model.predicts,
        "time input": str(model.time_input),
        **({} if data is None else {"training data": data}),
        **{str(key): str(value) for key, value in (training or {}).items()},
    }
    if isinstance(likelihood, BitsPerDim):
        likelihood = _bits_line(likelihood)
    rows |= {} if likelihood is None else {"likelihood": likelihood}
    folder = ", net=MyNet" if class_needed(described) else ""
    body = [f"# {name}", "", "A score-based generative model of [scoresde](https://github.com/scoresde/scoresde).", ""]
    body += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items()), ""]
    where = name if is_hub_name(name) else "user/model"
    body += [line for picture in pictures for line in (f"![{Path(picture).stem}]({picture})", "")]
    body += ["```python", "import scoresde as S", "", f'model = S.ScoreModel.from_pretrained("{where}"{folder})']
    body += ["x = S.sample(model, (16, ...))  # (16, *shape of an item)", "```", ""]
    body += [f"Saved by scoresde {__version__} as safetensors and JSON. No code is loaded with it.", ""]
    return "\n".join([*head, "---", "", *body])


def _bits_line(found: BitsPerDim) -> str:
    """Return mean and errors of bits/dim as a line."""
    error = "" if math.isnan(found.mean_stderr) else f" ± {found.mean_stderr:.3f}"
    largest = float(found.error.abs().max())
    solver = "" if math.isnan(largest) else f", error of the solver at most {largest:.2g}"
    return f"{found.mean:.3f}{error} bits/dim ({found.n} held-out items{solver})"


@checked
def save_with_card(model: ScoreModel, folder: str | Path, pictures: Sequence[str | Path] = (), **card: Any) -> Path:
    """Write a model into a folder as the hub has it, with its card.

    Args:
        model: The model.
        folder: A new or an empty folder.
        pictures: Picture files, which are copied.
        card: Settings of :func:`model_card`.

    Raises:
        ArgumentError: The folder is not empty, or a picture is missing.
        CheckpointError: The folder cannot be written.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        got = f"{folder}, which holds {next(folder.iterdir()).name}"
        raise ArgumentError("folder", got, "a new or an empty folder")
    for picture in pictures:
        if not Path(picture).is_file():
            raise ArgumentError("pictures", f"{picture}, which is no file", "picture files")
    text = model_card(model, pictures=[Path(picture).name for picture in pictures], **card)
    with atomic_folder(folder) as new:
        model.write_pretrained(new)
        (new / CARD).write_text(text, encoding="utf-8")
        for picture in pictures:
            shutil.copyfile(picture, new / Path(picture).name)
    return folder


@checked
def push_to_hub(
    model: ScoreModel,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    pictures: Sequence[str | Path] = (),
    message: str = "Upload a score model",
    **card: Any,
) -> str:
    """Upload a model to the hub of Hugging Face. ::

        model.push_to_hub("user/model", license="mit", data="mnist")

    Args:
        model: The model.
        repo_id: ``"user/model"``, made if there is none.
        private: Whether a new repository is private, default False.
        token: Token that may write. None: that of the machine (``hf auth login``).
        pictures: Picture files for the card.
        message: Message of the commit.
        card: Settings of :func:`model_card`, such as ``license``, ``data`` and ``likelihood``.

    Returns:
        Address of the repository.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        ArgumentError: Another form of name.
        CheckpointError: The upload failed; the message has the reason.
    """
    library = optional("huggingface_hub", "hub")
    if not is_hub_name(repo_id):
        raise ArgumentError("repo_id", repr(repo_id), "a name such as 'user/model'")
    with tempfile.TemporaryDirectory() as parent:
        folder = save_with_card(model, Path(parent) / "model", pictures, **{"name": repo_id, **card})
        try:
            api = library.HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(folder_path=str(folder), repo_id=repo_id, commit_message=message)
        except (OSError, ValueError) as error:
            raise CheckpointError("repo_id", f"{repo_id} ({_reason(error)})", "a repository to write to") from error
    return str(address)
