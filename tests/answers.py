"""Model answers to tests/exercises.py, each with a word on why."""

import math

import torch
import torch.nn.functional as F


def level_2_by_hand():
    # The 4 arrives at t = 2, stays in the window for 4 steps, and each time the sum of 4 is divided by 4.
    return [0, 0, 1, 1, 1, 1]


def kernel_sizes_by_hand():
    # 64 coordinates alone; 64 / 9 = 7.1, so level 1 gets 8 (i = 64 .. 71) and each of the others 7: 8 + 8 * 7 = 64.
    return [1, 1, 2, 2, 4, 512]


def leaky_log():
    # 1.06 bits a character after 200 steps: the README's honest models are above that after 10,000 steps. It is not skill.
    return 'b', 0.737 / math.log(2)


def average(x, f):
    # Padded in front: output t sees x moved by 0 .. f - 1 steps later, so nothing that comes after t. x.roll would bring
    # the end of the sequence to its beginning, and padding behind would make it the mean of the next f steps.
    # A model trained on either reads the token that it is asked to predict: its loss improves, and it learns nothing.
    return sum(F.pad(x, (0, 0, s, -s)) for s in range(f)) / f


def details(x, K):
    # A telescoping sum: every a_j is added once and taken away once, but a_0 = x and a_K.
    a = [average(x, 2 ** j) for j in range(K + 1)]
    return [a[K]] + [a[j - 1] - a[j] for j in range(1, K + 1)]


def newest_average(past, x, f):
    # Divided by f, not by how many there are: the missing ones are the zeros before the first step.
    return torch.cat((past, x), dim=1)[:, -f:].sum(dim=1, keepdim=True) / f


def average_backward(grad, f):
    # x(s) enters the outputs s .. s + f - 1, each with 1/f. So its gradient is the mean over the next f steps: the
    # same average, time reversed. Gradients flow from the future to the past, as they must.
    return average(grad.flip(1), f).flip(1)


def learnable_average(x, kernel):
    # All K - 1 zeros in front. conv1d slides the kernel as it is, so its last weight meets the newest step.
    C, K = kernel.shape
    padded = F.pad(x.transpose(1, 2), (K - 1, 0))  # (B, C, K - 1 + T)
    return F.conv1d(padded, kernel[:, None], groups=C).transpose(1, 2)  # (B, T, C)


def reads_the_future(mixer, T, C):
    # At every cut, since a block average is blind at the ends of its blocks; exactly, since a small leak is a leak;
    # all coordinates; and by one change that is large and not the same everywhere, for cheats that are not linear.
    x = torch.randn(1, T, C)
    out = mixer(x.clone())
    for t in range(1, T):
        changed = x.clone()
        changed[:, t:] += 100 * torch.randn(1, T - t, C)
        if not torch.equal(mixer(changed)[:, :t], out[:, :t]):
            return True
    return False


def my_filter(x):
    # A memory that fades: the last four steps, weighted 0.4, 0.3, 0.2, 0.1. It lags by one step, the plain mean of four
    # by one and a half.
    return sum((4 - s) / 10 * F.pad(x, (0, 0, s, 0))[:, :x.size(1)] for s in range(4))
