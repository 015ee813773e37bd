"""
Ten exercises, from a prediction by hand to a filter of your own. Write your code in the place
of each raise, and test it:

    python -m pytest -q --mine -x tests/test_exercises.py            the first that is not right
    python -m pytest -q --mine -k 4_average tests/test_exercises.py  one of them
    python tests/exercises.py                                        draw the filter of exercise 10

A test that fails says which property is broken. tests/answers.py has answers and reasons: try
first. The letters are those of wavelet_gpt.py: B sequences, T time steps, C coordinates. You may
use torch and all of wavelet_gpt.py, but not causal_haar.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'assets')]
from lesson import draw_dependence
from wavelet_gpt import causal_haar, kernel_sizes

OPEN = 'still open: write it in tests/exercises.py'

def level_2_by_hand():
    """
    Predict, without a computer: one coordinate holds 0 0 4 0 0 0, and its level is 2. What
    comes out? Level 2 averages f = 4 steps: the present one and the three before it. Before
    the first step there are zeros. Return a list of 6 numbers.
    """
    raise NotImplementedError(OPEN)

def kernel_sizes_by_hand():
    """
    Predict f(i) for the coordinates i = 0, 63, 64, 71, 72, 127 where C = 128 and T = 512: a list
    of 6 numbers. Hint: 64 coordinates are left alone. 9 levels share the others as evenly as
    they can. What is left over belongs to level 1.
    """
    raise NotImplementedError(OPEN)

def leaky_log():
    """
    Two runs have the same data (Python code) and the same size. Only the averages differ.
    Which run reads the future? Nobody looked at its text yet.

        step    val_loss of run a    val_loss of run b        (nats a character)
        0                   5.219                5.137
        50                  2.789                2.277
        100                 2.384                1.230
        150                 2.238                0.843
        200                 2.184                0.737

    Return 'a' or 'b', and the last val_loss of that run in bits a character. A bit is ln 2 nats.
    Hint: Shannon let people guess English letter by letter. They needed 0.6 to 1.3 bits a letter.
    """
    raise NotImplementedError(OPEN)

def average(x, f):
    """
    The mean of the last f steps, zeros before the first: what causal_haar does to a coordinate.
    x (B, T, C), f a power of two and at most T -> (B, T, C). A sum of f terms will do. No bit
    may come from outside the window, so use no FFT and no difference of running sums.
    Hint: F.pad(x, (0, 0, s, -s)) is x, s steps later. What does x.roll(s, dims=1) do at the
    first steps? What comes out if the zeros stand at the other end?
    """
    raise NotImplementedError(OPEN)

def details(x, K):
    """
    Take x apart into time scales that add up to x again. Let a_0 be x, and a_j the average of x
    over 2^j steps. Then d_j = a_{j-1} - a_j is what level j smooths away. So x is
    a_K + d_1 + ... + d_K. This is exact and causal, for any length.
    x (B, T, C), K >= 1, 2^K <= T -> the list [a_K, d_1, ..., d_K], each (B, T, C).
    """
    raise NotImplementedError(OPEN)

def newest_average(past, x, f):
    """
    Generation makes one token at a time, and needs the average at the newest step alone.
    past (B, n, C), all steps before, n may be 0; x (B, 1, C), the newest step -> (B, 1, C).
    It is what the average over f steps gives at the last of all n + 1 steps. f may be longer.
    Hint: GPT.average computes all steps and keeps the last. Which of them does the last need?
    """
    raise NotImplementedError(OPEN)

def average_backward(grad, f):
    """
    The gradient by hand. y = average(x, f), and grad (B, T, C) is the derivative of the loss by y.
    Return that by x, (B, T, C). Hint: which outputs does x(s) enter, and with what weight?
    """
    raise NotImplementedError(OPEN)

def learnable_average(x, kernel):
    """
    Let training choose the weights. Each coordinate has its own, for its last K steps:
    y(t, i) = sum of kernel[i, K - 1 - j] * x(t - j, i) for j = 0 ... K - 1.
    x (B, T, C), kernel (C, K), the newest step last -> (B, T, C). K may be longer than T.
    Hint: F.conv1d with groups=C takes (B, C, T). It does not turn the kernel around. At which
    end do the K - 1 zeros stand?
    """
    raise NotImplementedError(OPEN)

def reads_the_future(mixer, T, C):
    """
    The test that every such model needs: does any output depend on a later input?
    mixer: a function from x (1, T, C), float32, to (1, T, C), linear or not -> True or False.
    Hint: change the future, and compare the past. Where could a cheat hide? At which step, in
    which coordinate, how small?
    """
    raise NotImplementedError(OPEN)

def my_filter(x):
    """
    A filter of your own: x (B, T, C) -> (B, T, C), for any B, T and C. It must be causal, and
    remember at least one step. What helps to predict the next character? A difference? A memory
    that fades? Short windows for some coordinates and long ones for others?
    Generation begins with T = 1: F.pad(x, (0, 0, s, 0))[:, :T] is x, s steps later, for any s.
    Look at it: python tests/exercises.py. Then train with it, in a copy of the repository: paste
    it into wavelet_gpt.py, and write x = my_filter(x) in GPT.average, in the place of causal_haar.
    """
    raise NotImplementedError(OPEN)

if __name__ == '__main__':
    mixers = {'my_filter': my_filter,
              'causal_haar': lambda x: causal_haar(x, kernel_sizes(8, 16))}
    try:
        figure = draw_dependence(mixers, C=8)
    except NotImplementedError as error:
        raise SystemExit(f'my_filter: {error}')
    picture = Path('out', 'lesson', 'my_filter.png')
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, format='png')
    print(f'{picture}: your filter beside causal_haar, all coordinates together')
