"""The hub of Hugging Face, with a stand-in for its network."""

import sys

import pytest
import torch

from scoresde import extras
from scoresde.errors import ArgumentError, CheckpointError, MissingExtraError
from scoresde.interop import hub, model_card, save_with_card
from scoresde.likelihood import bits_per_dim
from scoresde.models import ScoreModel
from scoresde.nets import ResidualMLP, adapt
from scoresde.sde import VPSDE

library = pytest.importorskip("huggingface_hub")


@pytest.fixture
def model():
    return ScoreModel(ResidualMLP((2,), width=8, blocks=1), VPSDE()).eval()


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Keep uploads in a folder, and read downloads from it."""

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, private, exist_ok):
            if self.token == "wrong":
                raise OSError("401 Client Error: Unauthorized")
            (tmp_path / name).mkdir(parents=True, exist_ok=exist_ok)
            return f"https://hub/{name}{' private' if private else ''}"

        def upload_folder(self, folder_path, repo_id, commit_message):
            assert commit_message
            import shutil

            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def snapshot_download(name, revision, token, allow_patterns):
        assert set(allow_patterns) == {"config.json", "model.safetensors"}
        if not (tmp_path / name).is_dir():
            raise library.errors.LocalEntryNotFoundError("outgoing traffic has been disabled")
        return str(tmp_path / name)

    monkeypatch.setattr(library, "HfApi", Api)
    monkeypatch.setattr(library, "snapshot_download", snapshot_download)
    return tmp_path


def test_a_model_goes_up_and_comes_down(stored, model, tmp_path):
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"png")
    address = model.push_to_hub("me/points", private=True, license="mit", data="two-moons", pictures=[picture])
    assert address == "https://hub/me/points private"
    assert {path.name for path in (stored / "me/points").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "samples.png",
    }
    again = ScoreModel.from_pretrained("me/points")
    x = torch.randn(3, 2)
    assert torch.equal(model(x, 0.4).x0, again(x, 0.4).x0)
    text = (stored / "me/points" / "README.md").read_text()
    for part in ("license: mit", "- two-moons", "# me/points", "![samples](samples.png)", "VPSDE", "weights"):
        assert part in text


def test_names_that_are_nowhere_say_why(stored):
    with pytest.raises(CheckpointError, match=r"not on the hub or in its cache .*outgoing traffic"):
        ScoreModel.from_pretrained("me/none")


def test_a_local_folder_takes_precedence(stored, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("here/model")
    assert ScoreModel.from_pretrained("here/model").predicts == "noise"


def test_without_a_network_the_real_library_says_so():
    with pytest.raises(CheckpointError, match="not on the hub or in its cache"):
        hub.download("scoresde-tests/none")


def test_uploads_that_fail_are_named(stored, model):
    with pytest.raises(CheckpointError, match="Unauthorized"):
        model.push_to_hub("me/points", token="wrong")
    with pytest.raises(ArgumentError, match="user/model"):
        model.push_to_hub("points")


def test_a_missing_library_is_named(monkeypatch, model):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    for call in (lambda: model.push_to_hub("me/points"), lambda: ScoreModel.from_pretrained("me/points")):
        with pytest.raises(MissingExtraError, match=r"scoresde\[hub\]"):
            call()


def test_the_card_has_bits_and_how_to_load_a_foreign_network():
    images = torch.randint(0, 4, (3, 1, 2, 2))
    from scoresde.data import Scaling

    model = ScoreModel(ResidualMLP((1, 2, 2), width=8, blocks=1), VPSDE(), scaling=Scaling.for_integers(4))
    bits = bits_per_dim(model, images, generator=torch.Generator().manual_seed(0))
    text = model_card(model, likelihood=bits, training={"steps": 5})
    assert "bits/dim (3 held-out items, error of the solver at most" in text
    assert "| steps | 5 |" in text
    assert "license" not in text
    foreign = ScoreModel(adapt(torch.nn.Identity()), VPSDE())
    assert "net=MyNet" in model_card(foreign)


def test_a_folder_with_the_card_is_written_once(model, tmp_path):
    folder = save_with_card(model, tmp_path / "new", name="Points", license="cc0-1.0")
    assert "# Points" in (folder / "README.md").read_text()
    assert ScoreModel.from_pretrained(folder).sde == model.sde
    with pytest.raises(ArgumentError, match="an empty folder"):
        save_with_card(model, folder)
    with pytest.raises(ArgumentError, match="no file"):
        save_with_card(model, tmp_path / "other", [tmp_path / "none.png"])
