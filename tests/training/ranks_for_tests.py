"""One process of several, which test_distributed.py starts.

Run it as ``python -m tests.training.ranks_for_tests PART FOLDER``.
"""

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch

import scoresde as S
from scoresde.app.cli import main as cli
from scoresde.data import Data
from scoresde.errors import LostRankError
from scoresde.random import spawn_generators
from scoresde.training import LossAware, SlicedScoreMatching
from scoresde.training.checkpoints import checkpoints
from scoresde.training.distributed import over_ranks, process_group

SETTINGS = {
    "steps": 8,
    "batch_size": 9,  # shares of 5 and 4
    "conditional": True,
    "label_dropout": 0.3,
    "ema_half_life": {"fast": 2.0, "slow": 10.0},
    "log_every": 2,
    "checkpoint_every": 4,
    "warmup": 2,
    "lr": 1e-3,
    "device": "cpu",
}
GM = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.0]], [0.1, 0.3])


def digits():
    """Return small integer images with labels."""
    g = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 16, (40, 1, 2, 2), generator=g)
    return Data("squares", raw, torch.arange(40) % 3, num_values=16)


def trainer(folder, dropout=0.0, objective=None, **settings):
    torch.manual_seed(7)
    net = S.ResidualMLP((1, 2, 2), width=16, blocks=1, classes=3, dropout=dropout)
    model = S.ScoreModel.for_data(net, S.VPSDE(), digits())
    objective = S.DenoisingScoreMatching("likelihood", time_sampling="log-snr") if objective is None else objective
    return S.Trainer(model, objective, S.TrainerConfig(**SETTINGS | settings), folder)


def loss_aware():
    """Return an objective that learns where its loss is large."""
    return S.DenoisingScoreMatching("likelihood", time_sampling=LossAware(count=4, history=2))


def sampled(n=5):
    """Return samples and log-likelihoods shared among the ranks.

    Each item has its own generator.
    """
    model = GM.model(S.VPSDE())
    x0 = GM.sample(n, torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(2)
    x = over_ranks(
        lambda items, g: S.sample(model, (len(items), 2), S.DDIM(1.0), 5, generator=spawn_generators(g, len(items))),
        n,
        g,
    )
    nats = over_ranks(
        lambda items, g: (
            S.log_likelihood(
                model,
                x0[items.start : items.stop],
                S.Hutchinson(1),
                method="rk4",
                steps=5,
                generator=spawn_generators(g, len(items)),
            ).log_prob
        ),
        n,
        g,
    )
    return x, nats, torch.rand((), generator=g)


def commands(folder):
    """Return commands that several processes share."""
    out, cpu = folder / "commands", ("--device", "cpu")
    settings = ["train.log_every=2", "train.checkpoint_every=2", "train.warmup=0", "data.n=64", "data.held_out=5"]
    settings += [
        "net.options={width: 8, blocks: 1}",
        "train.batch_size=8",
        "likelihood.method=rk4",
        "likelihood.steps=2",
    ]
    settings += ["sample.steps=3"]
    settings = [part for setting in settings for part in ("--set", setting)]
    return [
        ["train", "--out", out, "--data", "two-moons", "--steps", 4, *cpu, *settings],
        ["sample", out, "-n", 5, *cpu],
        ["likelihood", out, *cpu],
    ]


def timed(folder, rank, budget=6.0):
    """Train for seconds of simulated clocks, 1 s a step.

    The clock of rank 0 runs half as fast as that of rank 1.
    """
    made, now = trainer(folder, minutes=budget / 60), iter(range(1000))
    made.timer = lambda: next(now) * (1 + rank) / 2
    made.fit(digits())
    return made


def said(*command):
    """Return what a command prints."""
    with redirect_stdout(io.StringIO()) as printed:
        code = cli([str(part) for part in command], standalone_mode=False)
    assert not code, code
    return printed.getvalue()


def main(part: str, folder: Path) -> None:
    with process_group() as ranks:
        rank = ranks.rank
        if part == "same":
            whole = trainer(folder / "run")
            records = whole.fit(digits(), held_out=digits())
            pieces = trainer(folder / "pieces", accumulate=2)
            pieces.fit(digits())
            sliced = trainer(folder / "sliced", objective=SlicedScoreMatching(2))
            sliced.fit(digits())
            differing = trainer(folder / "dropout", dropout=0.5)
            drawn = torch.rand(3)
            differing.fit(digits())
            minutes = timed(folder / "timed", rank)
            found = {"state": whole.model.net.state_dict(), "pieces": pieces.model.net.state_dict(), "drawn": drawn}
            found |= {"timed": minutes.model.net.state_dict(), "steps": minutes.step}
            found |= {"sliced": sliced.model.net.state_dict()}
            found |= {
                "losses": [r.loss for r in records],
                "held_out": [r.held_out for r in records],
                "norms": [r.grad_norm for r in records],
                "levels": records[-1].by_level,
                "sampled": sampled(),
            }
            found |= {"said": [said(*command) for command in commands(folder)]}
            found |= {"one": over_ranks(lambda items, g: torch.ones(len(items), 2), 1)}
            stopped = trainer(folder / "stopped", steps=200)
            stopped.every(1, lambda trainer: (folder / f"hook{rank}.txt").write_text(str(trainer.step)))
            stopped.fit(digits(), callback=lambda record: stopped.stop() if rank == 1 and record.step == 4 else None)
            found |= {"stopped": stopped.step}
            torch.save(found, folder / f"rank{rank}.pt")
        elif part == "onward":
            going = trainer(folder, objective=loss_aware(), steps=12, keep=9)
            begun = going.resume() if checkpoints(folder) else 0
            going.every(begun + 4, lambda trainer: trainer.stop())
            going.fit(digits())
        elif part == "die":
            dying = trainer(folder / "run", steps=10**6, checkpoint_every=5)
            try:
                for record in dying.records(digits()):
                    if rank == 1 and record.step == 6:
                        os._exit(1)
            except LostRankError as error:
                sys.stderr.write(f"{error}\n")
                os._exit(3)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
