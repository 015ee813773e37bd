# %% What it is, and how to call it
"""
The lesson: six pictures of what wavelet_gpt.py does, each drawn from its functions.

    python assets/lesson.py --out FOLDER    draws them; without --out into out/lesson

VS Code and Jupytext open this file as a notebook: a cell begins at each `# %%`. The last
line of a cell shows its picture. Change an argument there, and look again.
"""

import argparse
import io
import os
import sys
from pathlib import Path

NOTEBOOK = 'get_ipython' in globals()
if not NOTEBOOK:  # a backend that a notebook named here, and that is missing, stops the import
    os.environ['MPLBACKEND'] = 'agg'
import matplotlib
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch.fft import fft2, irfft, rfft

# wavelet_gpt.py lies one folder up. A notebook has no __file__, it runs in either folder.
folder = Path(globals().get('__file__', 'lesson.py')).resolve().parent
sys.path[:0] = [str(folder), str(folder.parent)]
from prepare_data import write_aside
from wavelet_gpt import GPT, GPTConfig, causal_haar, kernel_sizes

# %% What every picture has: large letters for a lecture hall, whatever a matplotlibrc says
matplotlib.rcdefaults()
matplotlib.rcParams.update({
    'font.size': 20, 'axes.titlesize': 18, 'figure.titlesize': 24, 'lines.linewidth': 4,
    'axes.spines.top': False, 'axes.spines.left': False, 'axes.spines.right': False,
    'ytick.left': False,
})
FUTURE = dict(facecolor='none', edgecolor='0.7', hatch='//', linewidth=0)

class Slide(Figure):
    """A figure of 1280 x 720 pixels that a notebook shows. It needs no display and no pyplot."""
    def __init__(self, title):
        super().__init__(figsize=(12.8, 7.2), dpi=100, layout='constrained')
        self.get_layout_engine().set(w_pad=0.2, h_pad=0.15)
        self.suptitle(title)

    def _repr_png_(self):  # the name that notebooks look for
        png = io.BytesIO()
        self.savefig(png, format='png')
        return png.getvalue()

def colour(share):
    """0 is the present alone, dark. 1 is the longest window, bright."""
    return matplotlib.colormaps['viridis'](0.8 * share)

# %% 1. The mapping f(i)
def draw_staircase(C=128, T=512):
    """Half of the coordinates stay as they are; the others are averaged over f(i) steps.
    Each stair is a level, and f doubles from one to the next. The levels share the coordinates
    as evenly as they can. Try C=16: what becomes of the longest windows?
    """
    slide = Slide(f'f(i): how many steps coordinate i is averaged over (C = {C}, T = {T})')
    axes = slide.subplots()
    sizes = kernel_sizes(C, T)
    windows = sorted(set(sizes))
    for n, f in enumerate(windows):
        first, count = sizes.index(f), sizes.count(f)
        axes.bar(first, n + 1, count, align='edge', color=colour(n / len(windows)))
        axes.text(first + count / 2, n + 1.1, f if f > 1 else '1: left alone', ha='center')
    axes.set(xlabel='coordinate i', xlim=(0, C), xticks=range(0, C + 1, C // 8), yticks=[])
    return slide

NOTEBOOK and draw_staircase()

# %% 2. A spike and a step
def draw_impulse_and_step(at=4, T=16):
    """A spike comes out as a box of f steps and of height 1/f, and a step as a ramp of f steps.
    Nothing comes out before it came in. After f steps nothing is left of the spike: exactly 0.
    """
    slide = Slide(f'What comes in at t = {at}, averaged over f = 1, 2, 4 and 8 steps')
    panels = slide.subplots(1, 2)
    sizes = [1, 2, 4, 8]
    spike, step = torch.zeros(2, T, 4)
    spike[at] = 1
    step[at:] = 1
    for axes, x, title in zip(panels, (spike, step), ('a spike', 'a step')):
        for n, average in enumerate(causal_haar(x, sizes).T):  # (T,)
            axes.stairs(average, baseline=None, color=colour(n / 3), linewidth=4)
            axes.text(at + sizes[n] - 0.5, average.max() + 0.02, sizes[n], ha='center')
        axes.set(title=title, xlabel='time step t', ylim=(-0.05, 1.12))
        axes.set(xticks=range(0, T + 1, 4), yticks=[0, 0.5, 1])
    return slide

NOTEBOOK and draw_impulse_and_step()

# %% 3. A line of text
def draw_line_of_text(line='with the words "DRINK ME," beautifully printed on it'):
    """The longer the window, the smoother is what comes out, and the later: by (f - 1)/2 steps.
    The signal is 1 at a capital and 0 elsewhere. A dot is the centre of a hill. To be late is
    the price of not looking ahead. (Behind the capitals, a line must go on for 15 letters.)
    """
    slide = Slide('Where are the capitals? One line of text at five resolutions')
    axes = slide.subplots()
    sizes = [1, 2, 4, 8, 16]
    capitals = torch.tensor([float(letter.isupper()) for letter in line])  # (T,)
    means = causal_haar(capitals[:, None].expand(-1, 5), sizes).T  # (5, T)
    t = torch.arange(len(line)) + 0.5
    centres = (means * t).sum(dim=1) / means.sum(dim=1)  # (5,)
    for n, f in enumerate(sizes):
        ground = -1.2 * n
        axes.stairs(means[n] + ground, baseline=ground, color=colour(n / 4), fill=True)
        axes.text(0, ground, f'f = {f}')
        axes.text(len(line), ground, f'{centres[n] - centres[0]:g} steps late', ha='right')
    axes.plot(centres, -1.2 * torch.arange(5), 'ko-', markersize=12, clip_on=False)
    for at, letter in zip(t, line):
        weight = 'bold' if letter.isupper() else 'normal'
        axes.text(at, 1.2, letter, ha='center', family='monospace', weight=weight)
    axes.set(xlim=(0, len(line)), ylim=(-5, 1.2), xticks=[], yticks=[])
    return slide

NOTEBOOK and draw_line_of_text()

# %% 4. How it is computed
def draw_wiring(T=16, f=8, t=11):
    """To sum 8 steps takes 3 adds instead of 7, and no wire leads back from the future.
    Follow the colours down from output 11: what stands 4, then 2, then 1 steps back is added.
    The grey wires are the same adds for the other outputs. The mean is the sum, divided by f.
    """
    shifts = [2 ** n for n in range(f.bit_length() - 1)]  # 1, 2, 4 ... f/2
    slide = Slide(f'{len(shifts)} shifted adds sum {f} steps: what output {t} is made of')
    axes = slide.subplots()
    for row, shift in enumerate(shifts):
        for s in range(T):
            used = 0 <= t - s < f and (t - s) % (2 * shift) == 0
            shade = colour((row + 1) / len(shifts)) if used else '0.9'
            for source in (s, s - shift):
                if source >= 0:
                    axes.plot((source, s), (row, row + 1), color=shade, zorder=1 + used)
    for row in range(len(shifts) + 1):
        axes.scatter(range(T), [row] * T, 200, color=colour(row / len(shifts)), zorder=3)
    axes.axvspan(t + 0.5, T - 0.5, **FUTURE)
    axes.set(xlabel='time step t', xlim=(-0.5, T - 0.5), xticks=range(T))
    names = ['x(t)'] + [f'+ {shift} back' for shift in shifts]
    axes.set_yticks(range(len(names)), names)
    return slide

NOTEBOOK and draw_wiring()

# %% 5. Who reads the future?
def dependence(mixer, T=16, C=1):
    """How much input step s moves output step t: the mean |d out(t) / d in(s)|, row t, column s.
    mixer is a function of x (B, T, C) that returns the like. The slopes are those at 64 random
    sequences; out(t) is the sum of its coordinates, with random signs. Returns (T, T).
    """
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(64, T, C, generator=dice).requires_grad_()
    signs = torch.randint(2, x.shape, generator=dice) * 2 - 1
    out = signs * mixer(x.clone())  # (64, T, C)
    rows = []
    for t in range(T):
        slopes, = torch.autograd.grad(out[:, t].sum(), x, retain_graph=True)  # (64, T, C)
        rows.append(slopes.abs().mean(dim=(0, 2)))
    matrix = torch.stack(rows)
    assert 0 < matrix.max() < torch.inf, 'the slopes are all 0, or not all are finite'
    return matrix

def future_entries(matrix):
    """How many entries look ahead. What is below 1e-5 of the largest is round-off."""
    return int((matrix.triu(1) > 1e-5 * matrix.max()).sum())

def block_average(x, f):
    """A wavelet transform, made long again: each block of f steps of x (B, T, C) is its mean."""
    blocks = x.split(f, dim=1)
    return torch.cat([b.mean(dim=1, keepdim=True).expand_as(b) for b in blocks], dim=1)

def cheats(T=16, f=4):
    """Ways to smooth over f steps that read the future: a dict from names to mixers."""
    slow = torch.cos(torch.pi / T * (torch.arange(T) + 0.5) * torch.arange(T // f)[:, None])
    slow = slow / slow.norm(dim=1, keepdim=True)  # (T / f, T)
    box = rfft(torch.ones(f, 1) / f, n=T, dim=0)
    return {
        'block average, repeated': lambda x: block_average(x, f),
        'undecimated, looking ahead': lambda x: sum(x.roll(-s, dims=1) for s in range(f)) / f,
        'FNet, an FFT over time': lambda x: fft2(x, dim=(1, 2)).real,
        'DCT, slow cosines kept': lambda x: slow.T @ (slow @ x),
        'FFT convolution, unpadded': lambda x: irfft(rfft(x, dim=1) * box, n=T, dim=1),
    }

def draw_dependence(mixers=None, T=16, C=1):
    """causal_haar reads nothing of the future, and each of these other ways to smooth does.
    A square is dark where input s moves output t much, on a logarithmic scale, and white where
    not at all. Red is in the future. Draw a mixer of yours too: draw_dependence({'mine': f}).
    """
    mixers = mixers or {'causal_haar': lambda x: causal_haar(x, [4] * C), **cheats(T)}
    slide = Slide('Which inputs s (across) move output t (down)? Darker: more. Red: the future')
    columns = min(3, len(mixers))
    rows = -(-len(mixers) // columns)  # rounded up
    past = torch.ones(T, T).tril() > 0
    edges = torch.arange(T + 1) - 0.5
    for n, (name, mixer) in enumerate(mixers.items()):
        matrix = dependence(mixer, T, C)
        title = f'{name}\nfuture entries: {future_entries(matrix)}'
        axes = slide.add_subplot(rows, columns, n + 1, title=title, xticks=[], yticks=[])
        for half, colours in ((past, 'YlGnBu'), (~past, 'Reds')):
            shown = half & (matrix > 1e-5 * matrix.max())
            shades = (matrix / matrix.max()).clamp(min=0.02).where(shown, torch.nan)
            axes.imshow(shades.numpy(), cmap=colours, norm=LogNorm(0.01, 1.5))
        axes.fill_between(edges, -0.5, edges, step='post', **FUTURE)
        axes.spines[:].set(visible=True, color='0.8')
    return slide

NOTEBOOK and draw_dependence()

# %% 6. A whole model
def gpt_mixer(wavelet, T, C):
    """Two blocks of an untrained GPT: a function of the embeddings (B, T, C)."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=T, n_layer=2, n_head=4, n_embd=C, wavelet=wavelet))
    def mixer(x):
        x = model.transformer.h[0](0.02 * x)  # as small as embeddings before training
        x = model.average(x, 1)
        return model.transformer.ln_f(model.transformer.h[1](x))
    return mixer

def draw_model(T=16, C=32):
    """Before training, attention takes all of the past alike; the averages add the recent past.
    Off: output t is moved by all earlier steps alike. On: stripes follow the diagonal, and end
    where the windows of 2, 4 and 8 steps end. Both are causal, and neither is trained yet.
    """
    mixers = {f'wavelet={w}': gpt_mixer(w, T, C) for w in ('off', 'on')}
    slide = draw_dependence(mixers, T, C)
    slide.suptitle('A GPT of two blocks, untrained: which inputs s move output t? Darker: more')
    return slide

NOTEBOOK and draw_model()

# %% As a script: all pictures into a folder
def main():
    parser = argparse.ArgumentParser(description='Draw the pictures of the lesson.')
    parser.add_argument('--out', default='out/lesson', type=Path, help='folder [out/lesson]')
    out = parser.parse_args().out
    for draw in (draw_staircase, draw_impulse_and_step, draw_line_of_text, draw_wiring,
                 draw_dependence, draw_model):
        path = out / (draw.__name__.removeprefix('draw_') + '.png')
        write_aside(path, draw()._repr_png_())
        print(f'{path}: {draw.__doc__.splitlines()[0]}')

if __name__ == '__main__' and not NOTEBOOK:
    main()
