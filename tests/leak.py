"""
Too good to be true: a GPT whose averages read the future, trained beside the causal one by the very same train.py.

    python tests/leak.py                     a minute and a half; leaves nothing behind
    python tests/leak.py --max_steps=50      shorter
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
import wavelet_gpt
from prepare_data import decode_text


def leaking(x, kernel_size, shifts=None):
    """The mistake: coordinate i of x (B, T, C) is averaged over the block of f(i) steps that t is in."""
    sizes = kernel_size.unique().tolist()
    return torch.cat([wavelet_gpt.block_average(x[..., kernel_size == f], f) for f in sizes], dim=2)


@torch.no_grad()
def loss_step_by_step(model, idx, targets):
    """The loss in nats a token where each prediction is made before what follows exists, as in generation."""
    T = idx.size(1)
    return sum(F.cross_entropy(model(idx[:, :t + 1])[0][:, -1], targets[:, t]).item() for t in range(T)) / T


def compare(name, average, settings):
    """Train with this average in place of causal_haar: the loss with the whole window in view, and that step by step."""
    print(f'\n{name}', '-' * len(name), sep='\n')
    with mock.patch.object(wavelet_gpt, 'causal_haar', average):
        model, meta, _, _ = train.train(settings)
        model.eval()
        device = next(model.parameters()).device
        data = train.load_tokens(settings.dataset, 'val', meta, settings.block_size, device)
        starts = torch.linspace(0, len(data[0]) - settings.block_size - 1, settings.batch_size).long()
        idx, targets = train.windows(data, starts, settings.block_size, device)
        # Without the cache, which weights the past as the causal average does: every token is the trained model's own.
        torch.manual_seed(settings.seed)
        text = model.generate(idx[:1, :16], 200, temperature=0.8, use_cache=False)[0]
        print('a sample:', decode_text(text.tolist(), meta['characters']), sep='\n')
        with torch.no_grad():
            return model(idx, targets)[1].item(), loss_step_by_step(model, idx, targets)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--max_steps', type=int, default=200, help='training steps of each of the two models [200]')
    settings = train.Settings(block_size=128, compile=False, **vars(parser.parse_args()))
    if problems := list(settings.problems()):
        parser.error('\n'.join(problems))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        losses = {name: compare(name, average, settings) for name, average in (
            ('causal_haar', wavelet_gpt.causal_haar), ('block average, repeated', leaking))}
    print('\nloss of 16 validation windows, nats   all in view   step by step')
    for name, (in_view, step_by_step) in losses.items():
        print(f'{name:<34} {in_view:14.3f} {step_by_step:14.3f}')
