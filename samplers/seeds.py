"""Independent random streams from one seed: one per block of chains, however many processes run them."""

from __future__ import annotations

import numpy as np
import torch

# Spawn keys that no block of chains ever reaches: of pilot chains, and of populations, which check what chains find.
ADAPTATION = 2**32 - 1
POPULATIONS = 2**32 - 2


def block_generator(seed: int, block: int, device: torch.device) -> torch.Generator:
    """A generator for one block of chains, ``SeedSequence(seed, spawn_key=(block,))``.

    Args:
        seed: Of the run.
        block: The number of the block, or one of the keys above.
        device: Where the noise is drawn.

    Returns:
        A seeded generator on that device.
    """
    words = np.random.SeedSequence(seed, spawn_key=(block,)).generate_state(2, np.uint32)
    return torch.Generator(device=device).manual_seed((int(words[0]) << 31) ^ int(words[1]))
