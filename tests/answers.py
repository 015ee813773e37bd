"""Model answers to tests/exercises.py, each with a word on why."""

import math

import torch
import torch.nn.functional as F

def level_2_by_hand():
    # The 4 arrives at t = 2 and stays in the window for 4 steps. Each time, 4 is divided by 4.
    return [0, 0, 1, 1, 1, 1]

def kernel_sizes_by_hand():
    # 64 = 9 * 7 + 1: level 1 has 8 coordinates, 64 to 71. Each of the others has 7.
    return [1, 1, 2, 2, 4, 512]

def leaky_log():
    # 1.06 bits a character after 200 steps. Honest models of this size are above that after
    # 10,000 steps. It is not skill.
    return 'b', 0.737 / math.log(2)

def average(x, f):
    # The zeros stand in front, so output t sees x moved by 0 to f - 1 steps: nothing after t.
    # x.roll would bring the end of the sequence to its beginning. With the zeros behind, it
    # would be the mean of the next f steps. A model trained on either reads the token that it
    # is asked to predict. Its loss falls, and it learns nothing.
    return sum(F.pad(x, (0, 0, s, -s)) for s in range(f)) / f

def details(x, K):
    # Every a_j is added once and taken away once, except a_0 = x and a_K.
    a = [average(x, 2 ** j) for j in range(K + 1)]
    return [a[K]] + [a[j - 1] - a[j] for j in range(1, K + 1)]

def newest_average(past, x, f):
    # Divided by f, not by how many there are: what is missing are zeros.
    return torch.cat((past, x), dim=1)[:, -f:].sum(dim=1, keepdim=True) / f

def average_backward(grad, f):
    # x(s) enters the outputs s to s + f - 1, each with 1/f. So its gradient is the mean of the
    # next f: the same average, with time reversed. Gradients flow from the future to the past.
    return average(grad.flip(1), f).flip(1)

def learnable_average(x, kernel):
    # All K - 1 zeros stand in front. The last weight meets the newest step.
    C, K = kernel.shape
    padded = F.pad(x.transpose(1, 2), (K - 1, 0))  # (B, C, K - 1 + T)
    return F.conv1d(padded, kernel[:, None], groups=C).transpose(1, 2)  # (B, T, C)

def reads_the_future(mixer, T, C):
    # At every cut, since a block average hides at the ends of its blocks. In all coordinates.
    # Exactly, since a small leak is a leak. With a large change that differs from step to step,
    # for the cheats that are not linear.
    x = torch.randn(1, T, C)
    out = mixer(x.clone())
    for t in range(1, T):
        changed = x.clone()
        changed[:, t:] += 100 * torch.randn(1, T - t, C)
        if not torch.equal(mixer(changed)[:, :t], out[:, :t]):
            return True
    return False

def my_filter(x):
    # A memory that fades: the last four steps count 0.4, 0.3, 0.2 and 0.1. It is late by one
    # step. The plain mean of four is late by one and a half.
    T = x.size(1)
    return sum((4 - s) / 10 * F.pad(x, (0, 0, s, 0))[:, :T] for s in range(4))
