"""The sampler: upstream's trajectories and schedules, and what holds for any schedule."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from upstream import TRAJECTORY, assert_close, cases, load

from reconx_core.errors import UserError
from reconx_core.video.diffusion.guidance import guidance_passes, guided_prediction
from reconx_core.video.diffusion.scheduler import ReconXScheduler


def scheduler_of(case):
    return ReconXScheduler(
        rescale_base=case["base_scale"] if case["dynamic_rescale"] else None,
        rescale_last_step=case["repo"] == "viewcrafter" and not case["multi"],
        timestep_spacing=case["spacing"].removeprefix("uniform_"),
    )


def analytic_model(timestep, concat):
    def model(x, cond):
        return torch.tanh(0.5 * x + cond) * math.cos(1.5 * timestep / 1000) - 0.3 * concat.repeat(len(x) // 2, 1, 1, 1, 1)

    return model


def passes_of(case, tensors):
    withheld = {frozenset(): "in.uncond", frozenset({"image"}): "in.uncond_image_only"}
    image = case["cfg_img"] if case["multi"] else case["guidance_scale"]
    passes = guidance_passes({"image": image, "text": case["guidance_scale"]})
    return [({"cond": tensors[withheld.get(seen, "in.cond")]}, scale) for seen, scale in passes]


@pytest.mark.parametrize(("path", "name"), cases("ddim_*.safetensors"))
def test_trajectories_equal_upstream_golden(path, name):
    tensors, metadata = load(path)
    case = metadata["cases"][name]
    scheduler, passes = scheduler_of(case), passes_of(case, tensors)
    scheduler.set_timesteps(case["steps"])
    assert scheduler.timesteps.flip(0).tolist() == tensors[f"{name}.out.timesteps"].tolist()

    x, outputs = tensors["in.x_T"], []
    for timestep, noise in zip(scheduler.timesteps, tensors["in.noise"]):
        model = analytic_model(int(timestep), tensors["in.concat"])
        v = guided_prediction(model, {"x": x}, passes, case["guidance_rescale"])
        outputs.append(scheduler.step(v, timestep, x, case["eta"], noise))
        x = outputs[-1].prev_sample
    for row, step in enumerate(tensors[f"{name}.out.steps"].tolist()):
        assert_close(outputs[step].pred_original_sample, tensors[f"{name}.out.pred_x0"][row], TRAJECTORY)
        assert_close(outputs[step].prev_sample, tensors[f"{name}.out.x_prev"][row], TRAJECTORY)
    assert_close(x, tensors[f"{name}.out.sample"], TRAJECTORY)


@pytest.mark.parametrize(("path", "name"), cases("ddim_*.safetensors"))
def test_schedules_equal_upstream_golden(path, name):
    tensors, metadata = load(path)
    case = metadata["cases"][name]
    scheduler = scheduler_of(case)
    scheduler.set_timesteps(case["steps"])
    coefficients = zip(*(scheduler.coefficients(int(t), case["eta"]) for t in scheduler.timesteps.flip(0)))
    for ours, theirs in zip(coefficients, ("ddim_alphas", "ddim_alphas_prev", "ddim_sigmas")):
        assert torch.allclose(torch.tensor(ours, dtype=torch.float64), tensors[f"{name}.out.{theirs}"], rtol=0, atol=1e-7)
    for buffer in ("betas", "alphas_cumprod"):
        assert torch.allclose(getattr(scheduler, buffer), tensors[f"schedule.{buffer}"], rtol=0, atol=1e-7)
    scale = tensors["schedule.scale_arr"]
    ours = ReconXScheduler(rescale_base=scale[-1].item()).rescale
    assert torch.allclose(ours, scale[: len(ours)], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"timestep_spacing": "uniform"}, {"zero_terminal_snr": False}, {"set_alpha_to_one": True}]
)
def test_finite_for_every_number_of_steps(settings):
    scheduler = ReconXScheduler(**settings)
    x = torch.ones(1, 1)
    for count in [*range(1, 101), 250, 333, 500, 999, 1000]:
        scheduler.set_timesteps(count)
        steps = scheduler.timesteps.tolist()
        assert len(steps) >= count - (settings.get("timestep_spacing") == "uniform")
        assert 0 <= min(steps) <= max(steps) <= 999
        assert sorted(set(steps), reverse=True) == steps
        for timestep in (steps[0], steps[-1]):
            assert scheduler.step(x, timestep, x, noise=x).prev_sample.isfinite().all()


def test_agrees_with_diffusers_where_that_is_finite():
    shared = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    ours = ReconXScheduler(rescale_base=None, **shared)
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True,
        set_alpha_to_one=False, clip_sample=False, **shared,
    )  # fmt: skip
    ours.set_timesteps(50)
    theirs.set_timesteps(50)
    x, v = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    for timestep in theirs.timesteps:
        mine, other = ours.step(v, timestep, x, eta=0.0), theirs.step(v, timestep, x, eta=0.0)
        assert torch.allclose(mine.prev_sample, other.prev_sample, atol=1e-5)
        assert torch.allclose(mine.pred_original_sample, other.pred_original_sample, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"rescale_base": 0.3, "rescale_last_step": True}, {"rescale_base": None}])
def test_the_true_velocity_leads_along_the_noising(settings):
    scheduler = ReconXScheduler(**settings)
    scheduler.set_timesteps(7)
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    path = [scheduler.add_noise(clean, noise, t.expand(3)) for t in scheduler.timesteps]
    for timestep, here, there in zip(scheduler.timesteps, path, path[1:]):
        v = scheduler.get_velocity(clean, noise, timestep.expand(3))
        assert torch.allclose(scheduler.step(v, timestep, here, eta=0.0).prev_sample, there, atol=1e-5)


def test_one_step_from_pure_noise_returns_the_predicted_mean():
    scheduler = ReconXScheduler(rescale_base=None, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    mean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    v = scheduler.get_velocity(mean, noise, scheduler.timesteps.expand(3))
    assert torch.equal(scheduler.step(v, scheduler.timesteps[0], noise, generator=torch.Generator()).prev_sample, mean)


def test_noise_is_drawn_from_the_generator():
    scheduler = ReconXScheduler()
    x = torch.ones(2, 3)
    first, again, other = (
        scheduler.step(x, 999, x, generator=torch.Generator().manual_seed(seed)).prev_sample for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    each = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    alone = scheduler.step(x[1:], 999, x[1:], generator=torch.Generator().manual_seed(4)).prev_sample
    assert torch.equal(scheduler.step(x, 999, x, generator=each).prev_sample[1:], alone)


def test_settings_survive_a_folder(tmp_path):
    ReconXScheduler(rescale_base=0.3, timestep_spacing="uniform").save_pretrained(tmp_path)
    loaded = ReconXScheduler.from_pretrained(tmp_path)
    assert (loaded.config.rescale_base, loaded.config.timestep_spacing) == (0.3, "uniform")
    assert loaded.rescale[-1] == pytest.approx(0.3)


def test_what_it_does_not_know_is_refused():
    with pytest.raises(UserError, match="spacing 'linspace'"):
        ReconXScheduler(timestep_spacing="linspace")
    with pytest.raises(UserError, match="not 'epsilon'"):
        ReconXScheduler(prediction_type="epsilon")
    with pytest.raises(UserError, match="not 0"):
        ReconXScheduler().set_timesteps(0)
