"""Denoisers of other libraries: their loops give what ours do."""

import pickle

import pytest
import torch

from scoresde.errors import ArgumentError, CheckpointError, DTypeError
from scoresde.interop.denoisers import from_azula, from_denoising_diffusion, from_edm, from_k_diffusion, from_sbi
from scoresde.interop.edm_pickle import convert
from scoresde.likelihood import log_likelihood
from scoresde.models import ScoreModel
from scoresde.sampling import DDIM, Heun, sample
from scoresde.sde import VESDE
from tests.interop.libraries import library

WITHOUT = ("torchvision", "torchvision.transforms", "dctorch", "accelerate", "ema_pytorch")


class Backbone(torch.nn.Module):
    """A small network of x and a number for the time."""

    def __init__(self, seed=0, times=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))

    def forward(self, x, t, **cond):
        return self.layers(torch.cat((x, t.to(x.dtype).reshape(-1, 1).expand(len(x), 1)), dim=1))


@pytest.fixture
def start():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_k_diffusion(start):
    layers = library("k_diffusion", "layers", WITHOUT)
    sampling = library("k_diffusion", "sampling", WITHOUT)
    denoiser = layers.Denoiser(Backbone().double(), sigma_data=0.5)
    model = from_k_diffusion(denoiser, sigma_max=80)
    sigmas = sampling.get_sigmas_karras(8, 0.02, 80).double()
    with torch.no_grad():
        theirs = sampling.sample_euler(denoiser, 80 * start, sigmas, disable=True)
        heun = sampling.sample_heun(denoiser, 80 * start, sigmas, disable=True)
    grid = (sigmas / 80).tolist()
    torch.testing.assert_close(sample(model, (6, 4), DDIM(grid=grid), start=80 * start), theirs, rtol=0, atol=1e-8)
    ours = sample(model, (6, 4), Heun(grid=grid[:-1], last="tweedie"), start=80 * start)
    torch.testing.assert_close(ours, heun, rtol=0, atol=1e-8)
    assert model.data_std == 0.5


@pytest.mark.parametrize("schedule", ["VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule"])
def test_azula(start, schedule):
    denoise, noise, samplers = (library("azula", name) for name in ("denoise", "noise", "sample"))
    denoiser = denoise.KarrasDenoiser(Backbone().double(), getattr(noise, schedule)())
    model = from_azula(denoiser)
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    alpha, sigma = denoiser.schedule(times)
    x = sigma[0] * start
    with torch.no_grad():
        theirs = samplers.DDIMSampler(denoiser, start=0.9, stop=0.1, steps=8, silent=True, dtype=torch.float64)(x)
    grid = model.sde.time_of(-2 * (sigma / alpha).log()).tolist()
    ours = alpha[-1] * sample(model, (6, 4), DDIM(grid=grid, last="none"), start=x / alpha[0])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_denoising_diffusion_pytorch():
    theirs = library("denoising_diffusion_pytorch", "denoising_diffusion_pytorch", WITHOUT)
    for objective, remembers in (("pred_noise", False), ("pred_v", False), ("pred_x0", True)):
        torch.manual_seed(0)
        unet = theirs.Unet(8, dim_mults=(1, 2), channels=1, self_condition=remembers, flash_attn=False)
        options = {"image_size": 8, "timesteps": 100, "sampling_timesteps": 5, "objective": objective}
        diffusion = theirs.GaussianDiffusion(unet, auto_normalize=False, **options).eval()
        model = from_denoising_diffusion(diffusion)
        torch.manual_seed(3)
        with torch.no_grad():
            expected = diffusion.ddim_sample((2, 1, 8, 8))
        torch.manual_seed(3)
        x = torch.randn(2, 1, 8, 8)
        from scoresde.guidance import clipped

        levels = [*reversed(torch.linspace(-1, 99, 6).int().tolist())]
        ours = sample(clipped(model), x.shape, DDIM(grid=[(k + 1) / 100 for k in levels]), start=x)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["VPScoreEstimator", "SubVPScoreEstimator", "VEScoreEstimator"])
def test_sbi(name):
    """Compare with steps along its reverse flow."""
    library("sbi")
    estimators = library("sbi", "neural_nets.estimators.score_estimator")

    class Net(Backbone):
        def forward(self, x, condition, t):
            return super().forward(x, t) * condition[:, :1]

    estimator = getattr(estimators, name)(Net().double(), torch.Size([4]), torch.Size([2])).double()
    model = from_sbi(estimator)
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    alpha, sigma = estimator.mean_t_fn(times).reshape(-1), estimator.std_fn(times).reshape(-1)
    condition = torch.tensor([[2.0, 1.0], [0.5, 1.0]], dtype=torch.float64)
    x = start = sigma[0] * torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        for i in range(8):  # DDIM's step with its score
            eps = -sigma[i] * estimator.score(x, condition, times[i].expand(2))
            x = alpha[i + 1] / alpha[i] * (x - sigma[i] * eps) + sigma[i + 1] * eps
    grid = model.sde.time_of(-2 * (sigma / alpha).log()).tolist()
    cond = {"condition": condition}
    ours = alpha[-1] * sample(model, (2, 4), DDIM(grid=grid, last="none"), start=start / alpha[0], cond=cond)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)
    with pytest.raises(ArgumentError, match="observations"):
        model(start, 0.5)


class EDMPrecond(torch.nn.Module):
    """The preconditioning of Karras et al. 2022, eq. 7."""

    sigma_min, sigma_max, sigma_data, img_channels = 0.0, float("inf"), 0.5, 3

    def __init__(self):
        super().__init__()
        self.model = Backbone()

    def forward(self, x, sigma, class_labels=None, **options):
        sigma = sigma.reshape(-1, 1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        F = self.model(x / total, sigma.log() / 4)
        return self.sigma_data**2 / total**2 * x + sigma * self.sigma_data / total * F


def test_edm_by_its_own_sampler(start):
    """Compare with algorithm 1 of Karras et al. 2022, written literally."""
    net = EDMPrecond().double()
    model = from_edm(net)
    steps, low, high, power = 9, 0.002, 80.0, 7
    i = torch.arange(steps, dtype=torch.float64)
    sigmas = (high ** (1 / power) + i / (steps - 1) * (low ** (1 / power) - high ** (1 / power))) ** power
    x = 80 * start
    with torch.no_grad():
        for sigma, after in zip(sigmas, [*sigmas[1:], torch.zeros(())], strict=True):
            slope = (x - net(x, sigma)) / sigma
            moved = x + (after - sigma) * slope
            if after > 0:
                moved = x + (after - sigma) * (slope + (moved - net(moved, after)) / after) / 2
            x = moved
    ours = sample(model, (6, 4), Heun(grid=(sigmas / 80).tolist(), last="tweedie"), start=80 * start)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)
    assert model.scaling.num_values == 256
    assert (model.data_std, model.time_input) == (0.5, "sigma")


def test_the_largest_noise_is_one_that_the_network_knows():
    class Levels(EDMPrecond):
        def round_sigma(self, sigma):
            return torch.tensor([0.1, 1.0, 80.4], dtype=torch.float64)[(sigma > 2).long() + (sigma > 0.5).long()]

    assert from_edm(Levels()).sde == VESDE.linear(80.4)
    net = EDMPrecond()
    net.sigma_max = 50.0
    assert from_edm(net).sde == VESDE.linear(50.0)


def test_a_denoiser_has_a_likelihood(start):
    model = from_edm(EDMPrecond().double(), sigma_max=20)
    found = log_likelihood(model, 0.5 * start)
    assert found.log_prob.isfinite().all()
    assert (found.error < 0.05).all()


def test_a_denoiser_is_saved_and_loaded_with_its_network(start, tmp_path):
    model = from_edm(EDMPrecond().double())
    model.save_pretrained(tmp_path / "model")
    for net in (EDMPrecond, EDMPrecond().double()):
        again = ScoreModel.from_pretrained(tmp_path / "model", net=net).double()
        assert torch.equal(model(start, 0.1).x0, again(start, 0.1).x0)


def test_a_pickle_becomes_a_model_without_code(start, tmp_path):
    """Run the script that users run where they trust a pickle."""
    net = EDMPrecond()
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": net}))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"G": net}))
    convert(tmp_path / "net.pkl", tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model", net=EDMPrecond)
    assert torch.equal(from_edm(net)(start.float(), 0.1).x0, again(start.float(), 0.1).x0)
    with pytest.raises(CheckpointError, match="without an entry 'ema'"):
        convert(tmp_path / "other.pkl", tmp_path / "other")
    with pytest.raises(CheckpointError, match="EDMPrecond"):
        ScoreModel.from_pretrained(tmp_path / "model")


def test_other_objects_are_refused():
    for call in (from_azula, from_denoising_diffusion):
        with pytest.raises(DTypeError, match=r"a denoiser of azula|GaussianDiffusion"):
            call(Backbone())
    with pytest.raises(ArgumentError, match="no levels"):
        from_k_diffusion(Backbone())
