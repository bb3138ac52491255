"""The sampler: DDIM on a zero-terminal-SNR schedule with v-prediction and dynamic rescale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.errors import UserError

RAMP = 400  # timesteps over which the dynamic rescale falls from 1 to its base


@dataclass
class ReconXSchedulerOutput(BaseOutput):
    """The sample at the next timestep, and the clean sample that the step predicted."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class ReconXScheduler(SchedulerMixin, ConfigMixin):
    """DDIM as in DynamiCrafter and ViewCrafter, finite for every number of steps.

    With a = alphas_cumprod and c = the dynamic rescale, a noisy sample is sqrt(a) c x0 + sqrt(1 - a) noise, and the network
    predicts v = sqrt(a) noise - sqrt(1 - a) c x0.

    ``rescale_base``: the value of c after 400 timesteps (None: c is 1 throughout). ``rescale_last_step``: the last step
    divides by c, as in ViewCrafter's sampler; else it leaves c in, as in DynamiCrafter's. ``timestep_spacing``: "trailing",
    or "uniform", upstream's other list (1, 101, 201, ...), which is diffusers' "leading" with offset 1 only where the
    number of steps divides 1000. ``set_alpha_to_one``: the last step returns the predicted clean sample; else it keeps
    the noise of timestep 0, as upstream does.

    Raises:
        UserError: the prediction type or the spacing is not supported.
    """

    config: Any  # diffusers' dict with attributes
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        zero_terminal_snr: bool = True,
        prediction_type: str = "v_prediction",
        rescale_base: float | None = 0.7,
        rescale_last_step: bool = False,
        timestep_spacing: str = "trailing",
        set_alpha_to_one: bool = False,
    ) -> None:
        if prediction_type != "v_prediction":
            raise UserError(f"The scheduler knows v_prediction only, not '{prediction_type}'; correct scheduler_config.json.")
        if timestep_spacing not in ("trailing", "uniform"):
            raise UserError(f"There is no timestep spacing '{timestep_spacing}'; choose trailing or uniform.")
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
        self.betas = betas.float()
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).float()
        self.rescale = _dynamic_rescale(rescale_base, num_train_timesteps)
        self.init_noise_sigma = 1.0
        self.set_timesteps(min(50, num_train_timesteps // 2))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the timesteps (in `timesteps`, descending) of a run with that many steps.

        Raises:
            UserError: fewer than one step, or more than there are timesteps.
        """
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise UserError(f"The number of sampling steps must lie between 1 and {total}, not {num_inference_steps}.")
        self.num_inference_steps = num_inference_steps
        if self.config.timestep_spacing == "trailing":
            steps = np.arange(total, 0, -total / num_inference_steps)[:num_inference_steps].round() - 1
        else:  # without the last index: with 3 steps, for example, upstream's list would exceed the schedule
            steps = np.arange(0, total - 1, total // num_inference_steps)[::-1] + 1
        order = [int(step) for step in steps]
        self._following: dict[int, int | None] = dict(zip(order, [*order[1:], None]))
        self.timesteps = torch.tensor(order, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """Returns the sample unchanged: this sampler needs no input scaling."""
        return sample

    def coefficients(self, timestep: int, eta: float) -> tuple[float, float, float]:
        """(alpha, alpha of the next timestep in the list, sigma) of the step from ``timestep``.

        sigma = eta sqrt((1 - a') / (1 - a) (1 - a / a')).
        """
        following = self._following[timestep]
        last = 1.0 if self.config.set_alpha_to_one else float(self.alphas_cumprod[0])
        alpha = float(self.alphas_cumprod[timestep])
        alpha_next = last if following is None else float(self.alphas_cumprod[following])
        return alpha, alpha_next, eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5

    def step(
        self,
        model_output: Float[Tensor, "b ..."],
        timestep: Tensor | int,
        sample: Float[Tensor, "b ..."],
        eta: float = 1.0,
        noise: Float[Tensor, "b ..."] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ReconXSchedulerOutput | tuple[Tensor, Tensor]:
        """One DDIM step, in float32: x' = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma noise.

        If eta > 0 and ``noise`` is not given, it is drawn from ``generator``.
        """
        timestep = int(timestep)
        alpha, alpha_next, sigma = self.coefficients(timestep, eta)
        x, v = sample.float(), model_output.float()
        original = (alpha**0.5 * x - (1 - alpha) ** 0.5 * v) * self._rescale_ratio(timestep)
        epsilon = alpha**0.5 * v + (1 - alpha) ** 0.5 * x
        # In float32, as upstream: at the first step with eta 1 this is 0 up to rounding, which affects upstream's results;
        # where it rounds below 0 upstream gets NaN.
        direction = (1 - torch.tensor(alpha_next) - torch.tensor(sigma) ** 2).clamp(min=0).sqrt().item()
        following = alpha_next**0.5 * original + direction * epsilon
        if sigma > 0:
            noise = randn_tensor(sample.shape, generator, sample.device, torch.float32) if noise is None else noise.float()
            following = following + sigma * noise
        output = ReconXSchedulerOutput(following.to(sample.dtype), original.to(sample.dtype))
        return output if return_dict else output.to_tuple()

    def add_noise(
        self, original: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b ..."]:
        """The noisy samples for training: sqrt(a) c x0 + sqrt(1 - a) noise."""
        signal, spread, scale = self._training_factors(timesteps, original)
        return signal * scale * original + spread * noise

    def get_velocity(
        self, original: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b ..."]:
        """The training target: v = sqrt(a) noise - sqrt(1 - a) c x0."""
        signal, spread, scale = self._training_factors(timesteps, original)
        return signal * noise - spread * scale * original

    def _rescale_ratio(self, timestep: int) -> float:
        following = self._following[timestep]
        if following is None and not self.config.rescale_last_step:
            return 1.0
        return float(self.rescale[following or 0] / self.rescale[timestep])

    def _training_factors(self, timesteps: Int[Tensor, " b"], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, scale = self.alphas_cumprod.to(like.device)[timesteps], self.rescale.to(like.device)[timesteps]
        shape = (-1, *[1] * (like.ndim - 1))
        signal, spread, scale = (f.to(like.dtype).view(shape) for f in (alpha.sqrt(), (1 - alpha).sqrt(), scale))
        return signal, spread, scale


def _dynamic_rescale(base: float | None, total: int) -> Float[Tensor, " total"]:
    ramp = torch.linspace(1.0, 1.0 if base is None else base, RAMP)
    return torch.cat([ramp, ramp[-1:].expand(max(total - RAMP, 0))])[:total]
