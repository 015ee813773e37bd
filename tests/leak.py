"""
Too good to be true: a GPT whose averages read the future, beside the causal one.

    python tests/leak.py                  two minutes; leaves nothing behind
    python tests/leak.py --max_steps=50   shorter

Both are trained by the same train.py. Other settings of train.py may be given, too.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'assets')]
import train
import wavelet_gpt
from lesson import block_average
from prepare_data import decode_text
from wavelet_gpt import causal_haar

def leaking(x, kernel_size):
    """The mistake: coordinate i gets the mean of the block of f(i) steps that t is in."""
    windows = sorted(set(kernel_size))
    parts = x.split([kernel_size.count(f) for f in windows], dim=-1)  # f(i) ascends
    return torch.cat([block_average(a, f) for a, f in zip(parts, windows)], dim=-1)

@torch.no_grad()
def step_by_step(model, x, y):
    """The loss where each prediction is made before what follows exists, as in generation."""
    losses = [F.cross_entropy(model(x[:, :t + 1])[0][:, -1], y[:, t]) for t in range(x.size(1))]
    return torch.stack(losses).mean().item()

def compare(name, average):
    """Train with this average: the loss with all in view, and the loss step by step."""
    print(f'\n{name}\n{"-" * len(name)}')
    with mock.patch.object(wavelet_gpt, 'causal_haar', average):
        args, _ = train.read_settings()
        _, model = train.train(args)
        model.eval()
        data = train.Data(args, next(model.parameters()).device)
        starts = torch.linspace(0, data.count('val') - 1, args.batch_size).long()
        x, y = data.get_batch('val', starts)
        torch.manual_seed(args.seed)
        # without the cache, so that every token is the model's own, also where it leaks
        text = model.generate(x[:1, :16], 200, temperature=0.8, use_cache=False)[0].tolist()
        print('a sample:', decode_text(text, data.meta['characters']), sep='\n')
        with torch.no_grad():
            return model(x, y)[1].item(), step_by_step(model, x, y)

if __name__ == '__main__':
    short = ['--max_steps=200', '--block_size=128', '--compile=off']
    sys.argv[1:1] = short  # what is typed stands behind it, and counts
    losses = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, average in ('causal_haar', causal_haar), ('block average, repeated', leaking):
            losses[name] = compare(name, average)
    print('\nloss of 16 validation sequences, nats   all in view   step by step')
    for name, (in_view, by_step) in losses.items():
        print(f'{name:<38} {in_view:12.3f} {by_step:14.3f}')
