"""The README: what it prints of the code is the code, and its commands and pieces of code run."""

import inspect
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import prepare_data
import sample
import train
import wavelet_gpt
from conftest import ROOT
from prepare_data import write_dataset
from wavelet_gpt import causal_haar, kernel_sizes

README = (ROOT / 'README.md').read_text(encoding='utf-8')
CODE = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)
COMMANDS = re.findall(r'(?:^    |&& |`)((?:python|torchrun) [^#\n`&]+)', README, re.M)
TINY = ('--n_layer=2 --n_head=2 --n_embd=16 --batch_size=2 --max_steps=2 --eval_interval=2 '
        '--device=cpu').split()

def code(beginning):
    return next(piece for piece in CODE if piece.startswith(beginning))

@pytest.fixture
def reader(here, monkeypatch):
    """A reader with a book and folders, but without a network, and who looks at no picture."""
    (here / 'book.txt').write_text('once upon a time there was a book\n' * 100)
    (here / 'folder').mkdir()
    for n in range(3):
        notes = [(0.1 * k, 0.1 * k + 0.2, 40 + k % (9 + n), 64) for k in range(300)]
        (here / f'folder/{n}.mid').write_bytes(sample.write_midi(notes))
        sound = np.sin(np.arange(8000) / (9 + n))
        (here / f'folder/{n}.wav').write_bytes(sample.write_wav(sound, 16000))
    for name in 'text8', 'maestro', 'youtubemix', 'imdb', 'cifar10':
        monkeypatch.setattr(prepare_data, f'prepare_{name}', lambda *_: print('prepared'))
    monkeypatch.setattr(train, 'save_picture', lambda *_: None)
    evaluate = train.evaluate
    monkeypatch.setattr(train, 'evaluate', lambda *words: evaluate(*words[:4], 2))
    monkeypatch.setattr(sample, 'KINDS', dict(text=(20, '')))
    tokens = np.random.default_rng(0).integers(10, size=2000)
    meta = dict(modality='text', vocab_size=10, characters='\n (adefimn', source='noise')
    for name in 'stdlib', 'book':
        write_dataset(name, dict(train=tokens, val=tokens), meta)
    return here

def start(script, *words):
    sys.argv = [script, *words]
    dict(train=train, sample=sample, prepare_data=prepare_data)[script.removesuffix('.py')].main()

@pytest.mark.parametrize('command', sorted(set(COMMANDS)))
def test_a_command_of_the_readme_runs(reader, command, capsys):
    words = shlex.split(command)
    if '-m' in words or words[1].startswith(('tests/', 'assets/')):
        # other tests run these: what they name must be there
        for word in words:
            assert '/' not in word or (ROOT / word).exists()
        return
    script, *settings = words[words.index(next(w for w in words if w.endswith('.py'))):]
    if '--dataset=listops-64' in settings:
        prepare_data.prepare_listops(64, 20, 5)
    if {'--resume', '--compare'} & set(settings) or script == 'sample.py':
        name = 'book' if '--run=book-on' in settings else 'stdlib'
        start('train.py', f'--dataset={name}', *TINY)
    settings += ['--examples=20'] if 'listops' in settings else []
    settings += TINY if script == 'train.py' and '--resume' not in settings else []
    start(script, *settings)
    assert capsys.readouterr().out

def test_causal_haar_and_the_line_of_the_idea_are_printed_as_they_are():
    assert code('def causal_haar').strip() == inspect.getsource(causal_haar).strip()
    assert code('            if n > 0') in inspect.getsource(wavelet_gpt.GPT.forward)

def test_the_line_counts_are_those_of_the_files():
    counts = re.findall(r'\]\((\w+\.py)\) \| (\d+) \|', README)
    assert len(counts) == 4
    for name, count in counts:
        assert len((ROOT / name).read_text(encoding='utf-8').splitlines()) == int(count)

class GRU(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]

def encoder(C, T):
    layer = nn.TransformerEncoderLayer(C, 2, 32, batch_first=True)
    stack = nn.TransformerEncoder(layer, 3)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    return lambda x: stack(x, mask=mask, is_causal=True), stack.eval().layers

def recurrent(C, T):
    stack = nn.Sequential(*[GRU(C, C, batch_first=True) for _ in range(3)])
    return stack, stack

@pytest.mark.parametrize('make', [encoder, recurrent])
def test_the_hook_puts_the_averages_behind_the_blocks_of_another_model(make):
    torch.manual_seed(0)
    names = dict(n_embd=16, block_size=32, causal_haar=causal_haar, kernel_sizes=kernel_sizes)
    names['model'], names['blocks'] = make(16, 32)
    names['x'], names['t'], names['torch'] = torch.randn(2, 32, 16), 20, torch
    before = names['model'](names['x'])
    # the same by hand: block, average, block, average, block
    x = names['x']
    with torch.no_grad():
        mask = nn.Transformer.generate_square_subsequent_mask(32)
        for n, block in enumerate(names['blocks']):
            x = block(x, src_mask=mask) if make is encoder else block(x)
            x = causal_haar(x, kernel_sizes(16, 32)) if n < 2 else x
        exec(code('from wavelet_gpt'), names)
        after = names['model'](names['x'])
        torch.testing.assert_close(after, x)
        assert not torch.allclose(after, before)
        exec(code('changed ='), names)

def test_a_filter_of_the_readme_trains_and_the_cache_follows_it(reader, monkeypatch):
    names = dict(torch=torch, causal_haar=causal_haar)
    exec(code('def detail'), names)
    monkeypatch.setattr(wavelet_gpt, 'causal_haar', names['detail'])
    start('train.py', *TINY, '--n_embd=128')
    _, model = sample.load_checkpoint(Path('out/stdlib-on/last.pt'))
    idx = torch.zeros(1, 3, dtype=torch.long)
    tokens = [[*model.eval().stream(idx, 30, 0, None, cached)] for cached in (True, False)]
    assert torch.equal(*map(torch.cat, tokens))

def test_a_data_set_of_the_readme_is_trained_on(reader):
    exec(code('import numpy'), {})
    start('train.py', '--dataset=coin', *TINY)
    assert Path('out/coin-on/best.pt').exists()
