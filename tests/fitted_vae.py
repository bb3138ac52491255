"""A VAE of the published layout that reproduces a few given frames: a random one shows nothing."""

import torch
from diffusers import AutoencoderKL
from torch import nn


class Same(nn.Module):
    """In place of an attention layer that adds nothing."""

    def forward(self, x, **_):
        return x


def fit_vae(config, frames, steps, learning_rate=4e-3):
    """Weights of `AutoencoderKL(**config)` after ``steps`` on ``frames`` [n h w 3]; its latents have unit variance once scaled.

    Its residual blocks begin as the identity, and its attention, the most expensive part, stays so.
    """
    vae = AutoencoderKL(**config)
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    middle = (vae.encoder.mid_block, vae.decoder.mid_block)
    attentions = [block.attentions for block in middle]
    for block in middle:
        block.attentions = nn.ModuleList([Same()])
    images = frames.movedim(-1, 1) * 2 - 1
    optimiser = torch.optim.Adam(vae.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, steps)
    for _ in range(steps):
        loss = (vae.decoder(vae.post_quant_conv(means(vae, images))) - images).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    for block, attention in zip(middle, attentions):
        block.attentions = attention
    normalise(vae, images)
    return vae.state_dict()


def means(vae, images):
    """The unscaled latents."""
    return vae.quant_conv(vae.encoder(images)).chunk(2, 1)[0]


@torch.no_grad()
def normalise(vae, images):
    """Shift and scale the latents as the decoder expects them, and make the encoder certain of them."""
    latents, channels = means(vae, images), vae.config.latent_channels
    middle, scale = latents.mean((0, 2, 3)), 1 / (vae.config.scaling_factor * latents.std())
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] *= scale
    into.bias[:channels] = scale * (into.bias[:channels] - middle)
    into.weight[channels:], into.bias[channels:] = 0, -30
    out_of.bias += out_of.weight[:, :, 0, 0] @ middle
    out_of.weight /= scale
