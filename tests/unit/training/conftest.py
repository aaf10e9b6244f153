import torch

# The tensors are small: several threads cost more than they bring, and the machine may be shared.
torch.set_num_threads(1)
