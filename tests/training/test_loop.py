"""The training loop: it learns, resumes exactly, and trains the parameters of its phase."""

import json

import pytest
import torch
from small_models import small_pipeline

from reconx_core.errors import UserError
from reconx_core.training.loop import LAST, PROGRESS, lr_lambda, train
from reconx_core.training.objective import Objective, choose_parameters, draw_timesteps, drop_conditions
from reconx_core.training.samples import sample_grid
from reconx_core.training.settings import TrainSettings


def settings(**changes):
    given = {"model": "tiny", "crop": (48, 64), "frames": 4, "points": 256, "steps": 4, "warmup": 0}
    given |= {"terminal_share": 0.5, "ema": 0.9}
    return TrainSettings(**{**given, **changes})


def run(out, clip, **changes):
    losses = []
    made = train(
        small_pipeline(), [lambda: clip], settings(**changes), out, lambda k, loss: losses.append(loss), lambda *_: None
    )
    return losses, torch.cat([p.detach().flatten() for p in made.unet.parameters()])


@pytest.mark.long
def test_resuming_from_a_checkpoint_changes_nothing(tmp_path, clip):
    straight, weights = run(tmp_path / "a", clip, checkpoint_every=2)
    run(tmp_path / "b", clip, steps=2, checkpoint_every=2, decay=False)
    (tmp_path / "b").rename(tmp_path / "unused")
    interrupted(tmp_path / "c", clip)
    rest, resumed = run(tmp_path / "c", clip, checkpoint_every=2)
    assert rest == straight[2:]
    assert torch.equal(resumed, weights)


def interrupted(out, clip):
    """A run that ends after its first checkpoint."""

    def stop(step, loss):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_pipeline(), [lambda: clip], settings(checkpoint_every=2), out, stop, lambda *_: None)
    assert (out / LAST / PROGRESS).is_file()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, clip):
    run(tmp_path, clip, steps=1)
    with pytest.raises(UserError, match="learning_rate"):
        run(tmp_path, clip, steps=2, learning_rate=0.5)


@pytest.mark.long
def test_a_checkpoint_with_earlier_names_of_settings_is_resumed(tmp_path, clip):
    run(tmp_path, clip, steps=1)
    progress = tmp_path / LAST / PROGRESS
    saved = json.loads(progress.read_text())
    saved["settings"]["vary"] = saved["settings"].pop("augment")
    saved["settings"]["kept_clips"] = saved["settings"].pop("clip_cache")
    progress.write_text(json.dumps(saved))
    losses, _ = run(tmp_path, clip, steps=2)
    assert len(losses) == 1


@pytest.mark.long
def test_a_checkpoint_that_is_older_than_some_settings_is_resumed(tmp_path, clip):
    """It was made on renders, and its data had no frame rate."""
    told = {"renders": True, "data": [{"path": "procedural:hall?seed=1"}]}
    run(tmp_path, clip, steps=1, **told)
    progress = tmp_path / LAST / PROGRESS
    saved = json.loads(progress.read_text())
    for key in ("renders", "sample_steps"):
        del saved["settings"][key]
    del saved["settings"]["data"][0]["fps"]
    progress.write_text(json.dumps(saved))
    assert len(run(tmp_path, clip, steps=2, **told)[0]) == 1
    with pytest.raises(UserError, match="renders"):
        run(tmp_path, clip, steps=3, **told | {"renders": False})


def test_without_clips_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no clip"):
        train(small_pipeline(), [], settings(), tmp_path, lambda *_: None, lambda *_: None)


def test_phases_train_what_they_say():
    objective = Objective(small_pipeline(), settings())
    names = {id(parameter): name for name, parameter in objective.networks.named_parameters()}
    chosen = {phase: {names[id(p)] for p in choose_parameters(objective, phase)} for phase in ("image", "structure", "all")}
    assert chosen["all"] == set(names.values())
    assert all("_ip." in name or name.startswith("image_projector") for name in chosen["image"])
    assert any("structure_gate" in name for name in chosen["structure"])
    assert any(name.startswith("structure_encoder") for name in chosen["structure"])
    assert not any("temp_" in name or "transformer_in" in name or "image_encoder" in name for name in chosen["structure"])


def test_conditions_are_dropped_with_their_probability():
    present, absent = torch.ones(4000, 1, 1), torch.zeros(4000, 1, 1)
    tokens = {"image": (present, absent), "text": (present, None)}
    kept = drop_conditions(tokens, {"image": 0.25}, torch.Generator().manual_seed(0))
    assert kept["image"].mean() == pytest.approx(0.75, abs=0.03)
    assert (kept["text"] == 1).all()


def test_the_last_timestep_has_its_share():
    drawn = draw_timesteps(4000, 0.5, torch.Generator().manual_seed(0))
    assert (drawn == 999).float().mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.min() < 10


def test_the_learning_rate_rises_and_falls():
    chosen = settings(steps=100, warmup=10)
    rates = [lr_lambda(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=0.01)


def test_a_sample_grid_shows_truth_render_and_frames(clip):
    grid, scores = sample_grid(small_pipeline(), [clip, clip], settings())
    assert grid.shape == (6 * 48, 4 * 64, 3)
    assert scores.keys() == {"points_psnr", "psnr"}


@pytest.mark.long
def test_one_clip_is_overfitted(tmp_path, clip):
    """The network, its conditions and the loss fit together: frames of a clip it has seen come out above 30 dB."""
    chosen = settings(steps=200, learning_rate=3e-3, terminal_share=1.0, ema=0, drop_image=0, drop_structure=0, augment=False)
    losses = []
    made = train(small_pipeline(), [lambda: clip], chosen, tmp_path, lambda k, loss: losses.append(loss), lambda *_: None)
    _, scores = sample_grid(made, [clip], chosen)
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert scores["psnr"] > 30 > scores["points_psnr"]
