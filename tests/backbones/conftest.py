"""One thread per process: these models are small, and threads that wait for one another cost more than they give."""

import torch

torch.set_num_threads(1)
