"""
Ten exercises, from a prediction by hand to a filter of your own. Replace each raise by your code, and test it:

    python -m pytest -q --mine -x tests/test_exercises.py                 the first that is still open or wrong
    python -m pytest -q --mine -k 4_average tests/test_exercises.py       one of them
    python tests/exercises.py                                             draw your filter of exercise 10

What fails names the property that broke. Model answers with their why stand in tests/answers.py; try first. Letters are
those of wavelet_gpt.py: B sequences, T time steps, C coordinates. You may use torch and all of wavelet_gpt.py but
causal_haar itself.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from wavelet_gpt import causal_haar, draw_dependence, kernel_sizes

OPEN = 'still open: write it in tests/exercises.py'


def level_2_by_hand():
    """Predict, without a computer: one coordinate holds 0 0 4 0 0 0, and its level is 2. What comes out?

    Level 2 averages f = 2^2 = 4 steps: this one and the three before it; before the first step there are zeros.
    returns  a list of 6 numbers
    """
    raise NotImplementedError(OPEN)


def kernel_sizes_by_hand():
    """Predict f(i) for the coordinates i = 0, 63, 64, 71, 72 and 127 of a model with C = 128 and T = 512.

    Hint: 64 coordinates are left alone, 9 levels share the other 64, as evenly as they can; what is left over is level 1's.
    returns  a list of 6 numbers
    """
    raise NotImplementedError(OPEN)


def leaky_log():
    """Which of two runs reads the future? The same data (Python source), size and steps; only the averages differ.

        step    val_loss of run a    val_loss of run b        (nats a character)
        0                   5.219                5.137
        50                  2.789                2.277
        100                 2.384                1.230
        150                 2.238                0.843
        200                 2.184                0.737

    Both logs come from python tests/leak.py. Nobody looked at the text yet.
    Hint: Shannon let people guess English letter by letter; it took them 0.6 to 1.3 bits a letter. A bit is ln 2 nats.
    returns  ('a' or 'b', the last val_loss of that run in bits a character)
    """
    raise NotImplementedError(OPEN)


def average(x, f):
    """The mean of the last f steps, with zeros before the first step: what causal_haar does to one coordinate.

    x (B, T, C), f a power of two, f <= T -> (B, T, C). A sum of f terms is enough. Hint: F.pad(x, (0, 0, s, -s)) is x
    moved s <= T steps later. What does x.roll(s, dims=1) do at the first steps? What if the zeros stood at the other end?
    Exactly: not one bit comes from outside the window, so no FFT and no difference of running sums.
    """
    raise NotImplementedError(OPEN)


def details(x, K):
    """Take x apart into resolutions that add up to x again.

    a_0 is x, a_j is x averaged over 2^j steps, and d_j = a_{j-1} - a_j is what level j smooths away. So x is
    a_K + d_1 + ... + d_K, whatever the averages are: exact, causal, of any length.
    x (B, T, C), K >= 1, 2^K <= T -> the list [a_K, d_1, ..., d_K], each (B, T, C). Hint: your average.
    """
    raise NotImplementedError(OPEN)


def newest_average(past, x, f):
    """Generation makes one token at a time: the average at the newest step alone, from what is remembered.

    past (B, n, C) all the steps before, n may be 0; x (B, 1, C) the newest; f -> (B, 1, C). It must be what the average
    over all n + 1 steps gives for the last; f may be longer. Hint: GPT.average does it for many f at once, with weights.
    """
    raise NotImplementedError(OPEN)


def average_backward(grad, f):
    """The gradient by hand: y = average(x, f), and grad (B, T, C) is the derivative of the loss by y. Return that by x.

    Hint: which outputs does x(s) enter, and with what weight? _ShiftedAdds.backward is one line of words.
    """
    raise NotImplementedError(OPEN)


def learnable_average(x, kernel):
    """Let training choose the weights: every coordinate has its own, for its last K steps, and none for the future.

    x (B, T, C), kernel (C, K), the newest step last -> (B, T, C): y(t, i) = sum of kernel[i, K - 1 - j] x(t - j, i) over
    j = 0 .. K - 1; K may be 1, or more than T. With kernel = 1/K everywhere it is the average over K steps. Hint: F.conv1d
    with groups=C wants (B, C, T), and it does not turn the kernel around. Where do the K - 1 zeros go?
    """
    raise NotImplementedError(OPEN)


def reads_the_future(mixer, T, C):
    """The test that every such model needs: does any output depend on a later input?

    mixer: a function from x (1, T, C), float32 and of just this T, to (1, T, C), linear or not -> True or False. Hint:
    change the future, compare the past, and ask where a cheat could hide: at which step, in which coordinate, how small?
    """
    raise NotImplementedError(OPEN)


def my_filter(x):
    """A filter of your own: x (B, T, C) -> (B, T, C), any B, T and C, causal, with a memory of at least one step.

    Generation begins with T = 1: F.pad(x, (0, 0, s, 0))[:, :T] is x moved s steps later, for any s.
    What may help to predict the next character: a difference, a fading memory, a longer window for some coordinates?
    Then look at it: python tests/exercises.py. And train with it, in a copy of the repository (the comparison would take
    your run for another one of wavelet=on): paste it into wavelet_gpt.py, and let GPT.average end with
    return torch.where(self.kernel_size > 1, my_filter(x), x). The losses are then right. If your filter is not linear, mixes
    coordinates or treats some steps otherwise than others, generate and stream must be called with use_cache=False in
    train.py and sample.py: for the cache, GPT.average filters one impulse and weights all steps by the answer.
    """
    raise NotImplementedError(OPEN)


if __name__ == '__main__':
    mixers = {'my_filter': my_filter, 'causal_haar': lambda x: causal_haar(x, kernel_sizes(8, 16))}
    picture = Path('out/lesson/my_filter.png')
    try:
        figure = draw_dependence(mixers, C=8)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture)
    except (NotImplementedError, ValueError, ImportError, OSError) as error:
        raise SystemExit(f'my_filter: {error}')
    print(f'{picture}: your filter beside causal_haar, all coordinates together')
