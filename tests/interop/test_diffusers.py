"""Pipelines of diffusers: their loops give what ours do."""

import json

import pytest
import torch

import scoresde.interop.diffusers as doors
from scoresde.errors import ArgumentError, DTypeError, ScoreSDEWarning
from scoresde.guidance import classifier_free_guidance
from scoresde.interop.diffusers import (
    from_diffusers,
    grid_of,
    limited_as,
    process_of,
    sampler_of,
    to_diffusers,
)
from scoresde.interop.latent import LatentModel
from scoresde.likelihood import bits_per_dim
from scoresde.models import ScoreModel
from scoresde.nets import adapt
from scoresde.sampling import DDIM, sample
from scoresde.sde import DDPM, VESDE, VPSDE, FlowSDE

diffusers = pytest.importorskip("diffusers")
DPMSolverScheduler = doors.DPMSolverScheduler

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


@pytest.fixture(autouse=True)
def quiet():
    """Hide what diffusers writes of packages that it does not find."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def unet(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**UNET | options).to(dtype).eval()


def exact(scheduler):
    """Return a scheduler that computes in float64."""
    for name in ("alphas_cumprod", "betas", "alphas", "one", "final_alpha_cumprod"):
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def loop(net, scheduler, start, steps, eta=0.0):
    """Return what the library's own loop gives."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    kind = type(scheduler).__name__
    more = {"generator": generator} if "DDPM" in kind else {}
    more |= {"eta": eta, "generator": generator} if "DDIM" in kind else {}
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(net(seen, t.to(x.dtype), return_dict=False)[0], t, x, **more).prev_sample
    return x


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
#: schedulers, their settings, and the noise eta
LEVELS = [
    ("DDIMScheduler", {}, 0.0),
    ("DDIMScheduler", {"clip_sample": False}, 0.7),
    ("DDIMScheduler", {"prediction_type": "sample"}, 0.0),
    ("DDIMScheduler", {**SCALED, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}, 0.0),
    ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False}, 0.0),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.5}, 0.0),
    ("DDPMScheduler", {}, 0.0),
    ("DDPMScheduler", {"clip_sample": False, "beta_schedule": "sigmoid", "variance_type": "fixed_large"}, 0.0),
    ("DDPMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, 0.0),
]


@pytest.mark.parametrize(("name", "settings", "eta"), LEVELS)
def test_schedulers_on_levels(name, settings, eta):
    scheduler, net = exact(getattr(diffusers, name)(**settings)), unet()
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = loop(net, scheduler, start, 10, eta)
    model = limited_as(scheduler, from_diffusers(net, scheduler))
    generator = torch.Generator().manual_seed(1)
    ours = sample(model, start.shape, sampler_of(scheduler, 10, eta), start=start, generator=generator)
    assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()


#: whose numbers are float32 in any case
SIGMAS = [
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("HeunDiscreteScheduler", {}),
]


@pytest.mark.parametrize(("name", "settings"), SIGMAS)
def test_schedulers_on_sigmas(name, settings):
    scheduler, net = getattr(diffusers, name)(**settings), unet()
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model, grid = from_diffusers(net, scheduler), grid_of(scheduler, 10)
    scheduler.set_timesteps(10)
    alpha = 1.0 if "DPM" in name else model.sde.alpha(grid[0]).item()  # the others begin at x/alpha
    theirs = loop(net, scheduler, noise * scheduler.init_noise_sigma, 10)
    start = noise * float(scheduler.init_noise_sigma) * alpha
    ours = sample(model, start.shape, sampler_of(scheduler, 10), start=start)
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def test_flow_matching():
    scheduler, net = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), unet()
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = loop(net, scheduler, start, 8)
    model = from_diffusers(net, scheduler)
    ours = sample(model, start.shape, sampler_of(scheduler, 8), start=start)
    assert isinstance(model.sde, FlowSDE)
    assert model.time_input == "scaled_time"
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def test_edm():
    scheduler, net = diffusers.EDMEulerScheduler(), unet()
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scheduler.set_timesteps(8)
    start = noise * scheduler.init_noise_sigma
    theirs = loop(net, scheduler, start, 8)
    ours = sample(from_diffusers(net, scheduler), start.shape, DDIM(grid=grid_of(scheduler, 8)), start=start.double())
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def test_learned_variances():
    scheduler, net = diffusers.DDPMScheduler(variance_type="learned_range"), unet(out_channels=6)
    exact(scheduler)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = loop(net, scheduler, start, 10)
    model = from_diffusers(net, scheduler)
    generator = torch.Generator().manual_seed(1)
    ours = sample(
        limited_as(scheduler, model), start.shape, sampler_of(scheduler, 10), start=start, generator=generator
    )
    assert model.learned_variance
    assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()


def time_features():
    """Return the features of the time that a UNet1DModel joins to x."""
    kinds = {"down_block_types": ("DownBlock1DNoSkip",), "up_block_types": ("UpBlock1DNoSkip",)}
    return 2 * len(diffusers.UNet1DModel(block_out_channels=(32,), **kinds).time_proj.weight)


def networks():
    """Return options, shape and condition of networks of other kinds."""
    torch.manual_seed(0)
    text, pooled, y = torch.randn(2, 5, 8), torch.randn(2, 8), torch.tensor([1, 0])
    unet1d = {
        "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
        "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"),
    }
    conditioned = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    conditioned |= {"norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4, "layers_per_block": 1}
    sdxl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    sdxl |= {"projection_class_embeddings_input_dim": 32}
    dit = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 3, "num_layers": 1, "sample_size": 8}
    sd3 = {"caption_projection_dim": 8, "joint_attention_dim": 8, "pooled_projection_dim": 8, "pos_embed_max_size": 8}
    sd3 |= {**dit, "out_channels": 3, "qk_norm": None}
    flux = {
        "in_channels": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
    }
    flux |= {"joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4)}
    time_ids = {"text_embeds": pooled, "time_ids": torch.arange(12.0).reshape(2, 6)}
    return {
        "UNet1DModel": (
            {
                "in_channels": 2,
                "out_channels": 2,
                "extra_in_channels": time_features(),
                "block_out_channels": (32, 32),
                **unet1d,
            },
            (2, 2, 16),
            {},
        ),
        "UNet2DConditionModel": (
            {"in_channels": 3, "out_channels": 3, "block_out_channels": (8,), **conditioned},
            (2, 3, 8, 8),
            {"encoder_hidden_states": text},
        ),
        "UNet2DConditionModel, SDXL": (
            {"in_channels": 3, "out_channels": 3, "block_out_channels": (8,), **conditioned, **sdxl},
            (2, 3, 8, 8),
            {"encoder_hidden_states": text, "added_cond_kwargs": time_ids},
        ),
        "DiTTransformer2DModel": (
            {**dit, "out_channels": 6, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"},
            (2, 3, 8, 8),
            {"y": y},
        ),
        "SD3Transformer2DModel": (sd3, (2, 3, 8, 8), {"encoder_hidden_states": text, "pooled_projections": pooled}),
        "FluxTransformer2DModel": (flux, (2, 3, 8, 8), {"encoder_hidden_states": text, "pooled_projections": pooled}),
    }


@pytest.mark.parametrize("name", networks())
def test_networks_of_every_kind(name, tmp_path):
    options, shape, cond = networks()[name]
    torch.manual_seed(1)
    net = getattr(diffusers, name.split(",")[0])(**options).eval()
    flow = name.startswith(("SD3", "Flux"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDPMScheduler()
    model = from_diffusers(net, scheduler)
    x, t = torch.randn(shape, generator=torch.Generator().manual_seed(2)), 0.371
    with torch.no_grad():
        ours = model.predict(x, model.sde.level(t, x), cond)
        theirs = call(net, name, x, t, cond)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    model.save_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.predict(x, model.sde.level(t, x), cond), ours)


def call(net, name, x, t, cond):
    """Return a network's output, as its own pipeline calls it."""
    if name.startswith("UNet"):
        return net(x, torch.tensor(370.0), **cond).sample
    if name.startswith("DiT"):
        return net(x, timestep=torch.full((2,), 370.0), class_labels=cond["y"]).sample
    if name.startswith("SD3"):
        return net(hidden_states=x, timestep=torch.full((2,), 371.0), **cond).sample
    packed = torch.stack(
        [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) for i in range(4) for j in range(4)], 1
    )
    ids = torch.tensor([[0.0, i, j] for i in range(4) for j in range(4)])
    found = net(hidden_states=packed, timestep=torch.full((2,), 0.371), img_ids=ids, txt_ids=torch.zeros(5, 3), **cond)
    patches, image = found.sample, torch.zeros_like(x)
    for place in range(16):
        i, j = 2 * (place // 4), 2 * (place % 4)
        image[:, :, i : i + 2, j : j + 2] = patches[:, place].reshape(2, 3, 2, 2)
    return image


def test_guidance_with_a_null_prompt_is_the_pipelines():
    options, shape, cond = networks()["UNet2DConditionModel, SDXL"]
    torch.manual_seed(1)
    net, scheduler = (
        diffusers.UNet2DConditionModel(**options).double().eval(),
        diffusers.DDIMScheduler(clip_sample=False),
    )
    cond = {
        "encoder_hidden_states": cond["encoder_hidden_states"].double(),
        "added_cond_kwargs": cond["added_cond_kwargs"],
    }
    cond["added_cond_kwargs"] = {name: value.double() for name, value in cond["added_cond_kwargs"].items()}
    empty = torch.zeros_like(cond["encoder_hidden_states"])
    pooled = torch.zeros_like(cond["added_cond_kwargs"]["text_embeds"])
    exact(scheduler).set_timesteps(5)
    x = start = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        for t in scheduler.timesteps:
            plain = {**cond["added_cond_kwargs"], "text_embeds": pooled}
            none = net(x, t.double(), encoder_hidden_states=empty, added_cond_kwargs=plain).sample
            text = net(x, t.double(), **cond).sample
            x = scheduler.step(none + 7.5 * (text - none), t, x).prev_sample
    null = {"encoder_hidden_states": empty[0], "added_cond_kwargs": {"text_embeds": pooled[0]}}
    guided = classifier_free_guidance(from_diffusers(net, scheduler), 7.5, null=null)
    ours = sample(guided, shape, sampler_of(scheduler, 5), start=start, cond=cond)
    assert (ours - x).abs().max() < 1e-9 * x.abs().max()


def test_likelihood_of_a_network_of_cifars_size_in_one_call():
    net = unet(torch.float32, sample_size=32)
    net.conv_out.weight.data *= 0.01  # a network with random weights has a flow that takes thousands of calls
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    model = from_diffusers(net, diffusers.DDPMScheduler())
    found = bits_per_dim(model, images, generator=torch.Generator().manual_seed(0))
    assert found.bits.isfinite().all()


def test_it_trains_is_saved_and_resumes(tmp_path):
    from scoresde.data import Data
    from scoresde.training import DenoisingScoreMatching, Trainer, TrainerConfig

    data = Data("noise", torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    runs = []
    for steps in ((10,), (5, 10)):
        model = from_diffusers(unet(torch.float32), diffusers.DDPMScheduler(), scaling=None)
        folder = tmp_path / str(len(steps))
        for n in steps:
            trainer = Trainer(
                model, DenoisingScoreMatching(), TrainerConfig(steps=n, batch_size=8, device="cpu"), folder=folder
            )
            if n != steps[0]:
                trainer.resume()
            trainer.fit(data)
        runs.append(model.net.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_the_way_back_is_bit_for_bit(tmp_path, name):
    scheduler = getattr(diffusers, f"{name}Scheduler")(beta_schedule="scaled_linear", clip_sample_range=2.0)
    kind = getattr(diffusers, f"{name}Pipeline")
    pipeline = kind(unet(torch.float32), scheduler)
    model = from_diffusers(pipeline)
    model.save_pretrained(tmp_path / "ours")
    to_diffusers(ScoreModel.from_pretrained(tmp_path / "ours"), tmp_path / "theirs")
    again = kind.from_pretrained(tmp_path / "theirs")
    weights = again.unet.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in pipeline.unet.state_dict().items())
    images = [
        one(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np")
        for one in (pipeline, again)
    ]
    assert abs(images[0].images - images[1].images).max() < 1e-5  # kernels depend on how a file's weights are aligned


def test_a_model_of_ours_gets_a_scheduler_of_its_levels(tmp_path):
    model = ScoreModel(adapt(unet(torch.float32), time="ddpm"), DDPM.cosine(100), "velocity")
    to_diffusers(model, tmp_path / "theirs")
    scheduler = diffusers.DDPMPipeline.from_pretrained(tmp_path / "theirs").scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), model.sde.alphas_bar, rtol=1e-4, atol=1e-6)
    with pytest.raises(ArgumentError, match="new or an empty"):
        to_diffusers(model, tmp_path / "theirs")
    with pytest.raises(ArgumentError, match="time_input='ddpm'"):
        to_diffusers(ScoreModel(adapt(unet(torch.float32)), VPSDE()), tmp_path / "other")


def test_a_replaced_prediction_replaces_the_scheduler(tmp_path):
    """Check that no scheduler is written that the model does not have."""
    model = from_diffusers(unet(torch.float32), diffusers.DDIMScheduler(), predicts="data")
    to_diffusers(model, tmp_path / "data")
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "data")
    assert again.scheduler.config.prediction_type == "sample"
    ours = from_diffusers(unet(torch.float32), DPMSolverScheduler())
    to_diffusers(ours, tmp_path / "ours")
    found = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours").scheduler
    torch.testing.assert_close(found.alphas_cumprod.double(), ours.sde.alphas_bar, rtol=1e-4, atol=1e-6)


def test_our_scheduler_tells_its_process():
    ours = DPMSolverScheduler(prediction_type="v_prediction")
    assert process_of(ours) == (ours.sde, {"predicts": "velocity", "time_input": "ddpm"})
    flow = DPMSolverScheduler(flow_matching=True)
    assert process_of(flow) == (FlowSDE(), {"predicts": "flow", "time_input": "scaled_time"})
    for scheduler in (ours, flow):
        grid = grid_of(scheduler, 5)
        assert len(grid) == 6
        assert grid[-1] == 0


class Autoencoder(torch.nn.Module):
    """Halves and doubles, with a scale and a shift."""

    def __init__(self):
        super().__init__()
        self.config = {"scaling_factor": 0.5, "shift_factor": 0.25}

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images, 2)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2)


def test_a_latent_model_encodes_decodes_and_scores_latents():
    latents = from_diffusers(unet(torch.float32), diffusers.DDPMScheduler(), scaling=None)
    model = LatentModel(latents, Autoencoder())
    images = torch.randn(2, 3, 16, 16).round(decimals=2)
    z = model.encode(images)
    torch.testing.assert_close(z, 0.5 * (torch.nn.functional.avg_pool2d(images, 2) - 0.25))
    torch.testing.assert_close(model.decode(z), torch.nn.functional.interpolate(z / 0.5 + 0.25, scale_factor=2))
    assert torch.equal(model(z, 0.3).x0, latents(z, 0.3).x0)
    with pytest.raises(Exception, match="scaling"):
        bits_per_dim(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(DTypeError, match="encode and decode"):
        LatentModel(latents, torch.nn.Identity())


def test_a_pipeline_with_an_autoencoder_becomes_a_latent_model():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, scaling_factor=0.2)

    class Pipeline:
        unet, scheduler = globals()["unet"](torch.float32), diffusers.DDIMScheduler()

    Pipeline.vae = vae
    model = LatentModel.from_diffusers(Pipeline())
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert model.scale == 0.2
    assert model.scaling is None
    torch.testing.assert_close(model.encode(images), 0.2 * vae.encode(images).latent_dist.mode())
    assert model.decode(model.encode(images)).shape == images.shape
    noisy = [model.encode(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction"}, {"beta_schedule": "squaredcos_cap_v2"}])
@pytest.mark.parametrize("calls", [1, 5, 20])
def test_our_scheduler_in_their_loop_is_our_sampler(settings, calls):
    net, theirs = unet(), diffusers.DDIMScheduler(clip_sample=False, **settings)
    scheduler = DPMSolverScheduler.from_config(theirs.config)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = loop(net, scheduler, start, calls)
    ours = sample(from_diffusers(net, theirs), start.shape, start=start, steps=calls)
    torch.testing.assert_close(x, ours, rtol=0, atol=1e-9)


def test_our_scheduler_in_a_pipeline(tmp_path):
    pipeline = diffusers.DDPMPipeline(unet(torch.float32), diffusers.DDPMScheduler())
    pipeline.scheduler = DPMSolverScheduler.from_config(pipeline.scheduler.config)
    options = {"num_inference_steps": 4, "output_type": "np"}
    images = pipeline(generator=torch.Generator().manual_seed(0), **options).images
    pipeline.scheduler.save_pretrained(tmp_path)
    pipeline.scheduler = DPMSolverScheduler.from_pretrained(tmp_path)
    assert (pipeline(generator=torch.Generator().manual_seed(0), **options).images == images).all()
    flow = DPMSolverScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, flow_matching=True)
    flow.set_timesteps(4)
    assert isinstance(flow.sde, FlowSDE)
    assert (flow.timesteps.diff() < 0).all()
    assert flow.timesteps[0] <= 1000


def test_our_scheduler_starts_in_the_middle_and_keeps_order():
    net, scheduler = unet(), DPMSolverScheduler()
    scheduler.set_timesteps(10)
    x0 = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    later = scheduler.timesteps[4:]  # as an image-to-image pipeline of strength 0.6
    x = scheduler.add_noise(x0, torch.ones_like(x0), later[:1])
    alpha = scheduler.sde.alpha((later[0].double() + 1) / 1000)
    torch.testing.assert_close(x[0, 0, 0, 0], (1 - alpha**2).sqrt(), rtol=1e-6, atol=0)
    with torch.no_grad():
        for t in later:
            x = scheduler.step(net(x, t.double()).sample, t, x).prev_sample
    assert x.isfinite().all()
    x = scheduler.step(x0, scheduler.timesteps[0], x0).prev_sample
    with pytest.raises(ArgumentError, match="the next of `timesteps`"):
        scheduler.step(x0, scheduler.timesteps[3], x)


def test_schedulers_without_a_score_or_with_other_steps_are_named():
    with pytest.raises(ArgumentError, match="tells a score"):
        process_of(diffusers.LCMScheduler())
    with pytest.raises(ArgumentError, match="DDIMScheduler"):
        sampler_of(diffusers.UniPCMultistepScheduler(), 5)
    with pytest.raises(DTypeError, match="a scheduler of diffusers"):
        grid_of(torch.nn.Identity(), 5)
    with pytest.raises(DTypeError, match="a pipeline or a network"):
        from_diffusers(torch.nn.Identity(), diffusers.DDPMScheduler())
    with pytest.raises(ArgumentError, match="trained with"):
        from_diffusers(unet())
    with pytest.warns(ScoreSDEWarning, match="steps from 999 to 899"):
        grid = grid_of(diffusers.DDIMScheduler(timestep_spacing="linspace"), 10)
    assert grid[:2] == pytest.approx([1.0, 0.889])


def test_the_time_input_of_a_scheduler_is_known_or_refused():
    continuous = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")
    assert process_of(continuous)[1] == {"predicts": "velocity", "time_input": "edm"}
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert process_of(unipc)[1] == {"predicts": "flow", "time_input": "scaled_time"}
    ve = process_of(diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=348.0))
    assert ve[0] == VESDE(0.01, 348.0)
    assert ve[1] == {"predicts": "score", "time_input": "score_sde_ve"}
    for wrong, message in (
        (diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "num_train_timesteps=500"),
        (diffusers.EDMEulerScheduler(prediction_type="v_prediction"), "v_prediction"),
    ):
        with pytest.raises(ArgumentError, match=message):
            process_of(wrong)
    with pytest.raises(ArgumentError, match="learned_range"):
        from_diffusers(unet(out_channels=6), diffusers.DDPMScheduler(variance_type="learned"))


def test_the_configuration_holds_no_code(tmp_path):
    model = from_diffusers(unet(torch.float32), diffusers.DDPMScheduler())
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["net"]["kind"] = "DiffusionPipeline"
    path.write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match="a network of diffusers"):
        ScoreModel.from_pretrained(tmp_path / "model")
