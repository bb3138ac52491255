"""Random generators derived from (seed, stage, scene), so that a stage's draws do not depend on which stages ran before it."""

import hashlib

import torch


def derive_seed(seed: int, *names: str) -> int:
    """A 63-bit seed that depends on the run's seed and on every name, in order."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
