"""How far the back ends may be from the reference: norm of the difference over the norm of the reference, by dtype of the inputs."""

import torch

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2}
