"""
Too good to be true: a GPT whose averages read the future, trained beside the causal one by the very same train.py.

    python tests/leak.py                     a few minutes on two cores; leaves nothing behind
    python tests/leak.py --max_steps=50      shorter
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train import Settings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--max_steps', type=int, default=200, help='training steps of each of the two models [200]')
settings = Settings(block_size=128, **vars(parser.parse_args()))
if problems := list(settings.problems()):
    parser.error('\n'.join(problems))

import torch
import torch.nn.functional as F

import train
import wavelet_gpt
from prepare_data import decode_text, read_meta


def leaking(x, kernel_size, levels=None):
    """The mistake: coordinate i of x (B, T, C) is averaged over the block of f(i) steps that t lies in, not over the last f(i)."""
    return torch.cat([wavelet_gpt.block_average(x[..., kernel_size == f], f) for f in kernel_size.unique().tolist()], dim=2)


@torch.no_grad()
def loss_step_by_step(model, idx, targets):
    """The loss in nats a token where each prediction is made before what follows exists, as in generation."""
    T = idx.size(1)
    return sum(F.cross_entropy(model(idx[:, :t + 1])[0][:, -1], targets[:, t]).item() for t in range(T)) / T


def compare(name, average):
    wavelet_gpt.causal_haar = average
    print(f'\n{name}', '-' * len(name), sep='\n')
    model, meta, _, rows = train.train(settings)
    model.eval()
    device = next(model.parameters()).device
    data = train.load_tokens('stdlib', 'val', meta, settings.block_size, device)
    starts = torch.linspace(0, len(data[0]) - settings.block_size - 1, settings.batch_size).long()
    idx, targets = train.windows(data, starts, settings.block_size, device)
    # Without the cache, which holds the weights of the causal average: each step is the model as it was trained.
    text = model.generate(idx[:1, :16], 200, temperature=0.8, use_cache=False)[0]
    print('a sample:', decode_text(text.tolist(), meta['characters']), sep='\n')
    return f'{name:<30} {rows[-1]["val_loss"]:12.3f} {loss_step_by_step(model, idx, targets):12.3f}'


with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    results = [compare('causal_haar', wavelet_gpt.causal_haar), compare('block_average, repeated', leaking)]
print('\nvalidation loss, nats                   as trained   step by step', *results, sep='\n')
