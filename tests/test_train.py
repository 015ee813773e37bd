"""The scripts as their users run them: training, its files, its mistakes, sampling."""

import contextlib
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import prepare_data
import sample
import train
from conftest import ROOT
from prepare_data import decode_text
from sample import write_midi
from test_gpt import make
from wavelet_gpt import GPT, GPTConfig

SMALL = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=16, block_size=32, batch_size=4, max_steps=20, eval_interval=10,
             eval_windows=8, device='cpu')


def run(script, *words):
    return subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, text=True, encoding='utf-8', timeout=120)


@pytest.fixture
def tiny(here):
    (here / 'tiny.txt').write_text('the quick brown fox jumps over the lazy dog\n' * 200)
    prepare_data.main(['--input', 'tiny.txt', '--name=tiny'])
    return here


def log_of(folder):
    with open(folder / 'log.csv') as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_a_log_two_checkpoints_and_a_picture(tiny):
    model, meta, folder, rows = train.train(train.Settings(**SMALL))
    assert folder == Path('out/tiny-on')
    log = log_of(folder)
    assert [row['step'] for row in log] == [0, 10, 20]
    assert list(log[0])[:5] == ['step', 'train_loss', 'val_loss', 'tokens_per_s', 'seconds']
    assert log[2]['val_loss'] < log[0]['val_loss'] and log[2]['seconds'] > log[1]['seconds'] > 0
    assert (folder / 'loss.png').read_bytes().startswith(b'\x89PNG')
    for name in ('last.pt', 'best.pt'):
        checkpoint = torch.load(folder / name, weights_only=True)
        assert checkpoint['step'] == 20 and checkpoint['meta']['characters'] == meta['characters']
        copy = GPT(GPTConfig(**checkpoint['config']))
        copy.load_state_dict(checkpoint['model'], strict=True)
        assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), model.parameters()))
    assert sorted(file.name for file in folder.iterdir()) == ['best.pt', 'last.pt', 'log.csv', 'loss.png',
                                                            'result.json']


def test_the_same_seed_gives_the_same_run_and_a_default_name_is_numbered(tiny):
    logs = [[row['val_loss'] for row in train.train(train.Settings(**SMALL))[3]] for _ in range(2)]
    assert logs[0] == logs[1]
    assert sorted(folder.name for folder in (tiny / 'out').iterdir()) == ['tiny-on', 'tiny-on-2']


def test_evaluating_more_often_or_over_more_windows_does_not_change_training(tiny):
    a = train.train(train.Settings(**SMALL))[0]
    b = train.train(train.Settings(**{**SMALL, 'eval_interval': 3, 'eval_windows': 5}))[0]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_wavelet_on_and_off_see_the_same_batches_from_the_same_initial_weights(tiny):
    runs = [train.train(train.Settings(**{**SMALL, 'wavelet': wavelet, 'wavelet_fraction': 0.0})) for wavelet in ('on', 'off')]
    assert [[row['val_loss'] for row in rows] for *_, rows in runs][0] == [row['val_loss'] for row in runs[1][3]]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_learns_too(tiny, dtype):
    rows = train.train(train.Settings(**{**SMALL, 'dtype': dtype}))[3]
    assert rows[-1]['val_loss'] < rows[0]['val_loss'] - 0.02


@pytest.mark.parametrize('error', [RuntimeError('no C compiler\nsecond line'), AssertionError()])
def test_a_compiler_that_fails_does_not_end_the_run(tiny, monkeypatch, capsys, error):
    def broken(model):
        raise error
    monkeypatch.setattr(train.torch, 'compile', broken)
    rows = train.train(train.Settings(**{**SMALL, 'compile': True}))[3]
    why = 'no C compiler' if str(error) else 'AssertionError()'
    assert rows[-1]['step'] == 20 and f'going on without ({why})' in capsys.readouterr().out


def test_the_learning_rate_warms_up_peaks_and_falls_to_a_tenth():
    settings = train.Settings(max_steps=600, learning_rate=1.0)
    rates = [train.learning_rate_at(step, settings) for step in range(600)]
    assert rates[0] == 0.01 and max(rates) == rates[99] == rates[100] == 1.0
    assert all(a >= b for a, b in zip(rates[100:], rates[101:])) and 0.1 <= rates[-1] < 0.1001
    for max_steps in (1, 2, 6, 100):  # also where nothing is left for a warm-up
        short = train.Settings(max_steps=max_steps)
        assert all(0 < train.learning_rate_at(step, short) <= 1e-3 for step in range(max_steps))


def test_only_matrices_are_decayed_and_learned_kernels_are_none(tiny):
    rows = train.train(train.Settings(**{**SMALL, 'learning_rate': 1e-12, 'weight_decay': 1e10, 'bias': True, 'wavelet': 'learnable'}))
    model, fresh = rows[0], GPT(rows[0].config)
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            assert torch.allclose(parameter, dict(fresh.named_parameters())[name], atol=1e-6)
    assert model.lm_head.weight.std() < 0.019


def test_every_step_has_its_learning_rate_and_a_gradient_that_is_no_longer_than_grad_clip(tiny, monkeypatch):
    rates, norms, step = [], [], torch.optim.AdamW.step

    def watched(optimizer, *words):
        rates.append(optimizer.param_groups[0]['lr'])
        norms.append(math.hypot(*(p.grad.norm().item() for group in optimizer.param_groups for p in group['params'])))
        return step(optimizer, *words)
    monkeypatch.setattr(torch.optim.AdamW, 'step', watched)
    settings = train.Settings(**SMALL, grad_clip=1e-3)
    train.train(settings)
    assert rates == [train.learning_rate_at(step, settings) for step in range(20)]
    assert max(norms) <= 1.001 * settings.grad_clip and min(norms) > 0.9 * settings.grad_clip


def test_the_scaled_loss_of_float16_does_not_scale_what_is_clipped(tiny, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', lambda *words: norms.append(clip(*words).item()))
    for dtype in 'float32', 'float16':
        train.train(train.Settings(**SMALL | dict(dtype=dtype, max_steps=1)))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_the_order_of_the_batches_depends_on_the_seed_alone(tiny, monkeypatch):
    drawn, windows = [], train.windows

    def watched(data, starts, *words):
        drawn.append(starts.tolist())
        return windows(data, starts, *words)
    monkeypatch.setattr(train, 'windows', watched)
    orders = []
    for changes in {}, dict(dropout=0.2, wavelet='off', n_layer=3), dict(seed=1):
        drawn.clear()
        train.train(train.Settings(**SMALL | changes))
        orders.append(list(drawn))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype, compiled', [('float32', False), ('float16', False), ('bfloat16', True)])
def test_training_on_a_gpu_learns_what_training_on_the_cpu_learns(tiny, dtype, compiled):
    (*_, on_cpu), (*_, folder, on_gpu) = (train.train(train.Settings(**SMALL | changes))
                                          for changes in ({}, dict(device='cuda', dtype=dtype, compile=compiled)))
    assert [row['val_loss'] for row in on_gpu] == pytest.approx([row['val_loss'] for row in on_cpu], abs=0.02)
    assert ('compiled' in json.loads((folder / 'result.json').read_text())['machine']) == compiled  # it may go on without


@pytest.mark.parametrize('capability, dtype', [((9, 0), 'bfloat16'), ((8, 0), 'bfloat16'), ((7, 5), 'float16'),
                                               ((6, 1), 'float32')])
def test_a_gpu_gets_the_shortest_float_that_it_is_fast_at(monkeypatch, capability, dtype):
    for name, answer in dict(is_available=True, device_count=1, set_device=None, get_device_capability=capability,
                             get_device_name='a GPU').items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    assert train.choose_device(train.Settings()) == (torch.device('cuda'), getattr(torch, dtype), True)
    assert train.choose_device(train.Settings(device='cpu'))[1:] == (torch.float32, False)


def test_an_apple_gpu_trains_only_what_it_computes_as_the_cpu_does(monkeypatch, capsys):
    config = train.model_config(train.Settings(**SMALL), vocab_size=5)
    monkeypatch.setattr(torch.Tensor, 'to', lambda x, *_: x)  # every place is the CPU, so that both agree
    monkeypatch.setattr(torch.nn.Module, 'to', lambda model, *_: model)
    assert train.mps_or_cpu(config, 4).type == 'mps' and not capsys.readouterr().out
    assert train.mps_or_cpu(config, 32_768 // config.block_size).type == 'cpu'
    assert 'at most 32,767' in capsys.readouterr().out

    def wrong_gradient(model):
        model.transformer.h[0].mlp.register_full_backward_hook(lambda module, grads, _: (grads[0] * 1.1,))

    def wrong_without_gradient(model):
        model.lm_head.register_forward_hook(lambda module, _, logits: logits if torch.is_grad_enabled() else logits * 1.1)
    for spoil in wrong_gradient, wrong_without_gradient:
        monkeypatch.setattr(torch.nn.Module, 'to', lambda model, device: (device == 'mps' and spoil(model), model)[1])
        assert train.mps_or_cpu(config, 4).type == 'cpu'
        assert 'computes something else' in capsys.readouterr().out
    monkeypatch.undo()
    if not torch.backends.mps.is_available():
        assert train.mps_or_cpu(config, 4).type == 'cpu'  # where there is none, an error says so
        assert 'MPS does not work for this model, going on on the CPU (' in capsys.readouterr().out


def test_half_precision_on_an_apple_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert train.choose_device(train.Settings()) == (torch.device('mps'), torch.float32, False)
    with pytest.raises(SystemExit, match='--dtype=float16: .* use float32'):
        train.choose_device(train.Settings(dtype='float16'))


def test_the_time_that_is_left_is_that_of_the_steps_that_are_left(capsys):
    row = dict(step=150, train_loss=2.0, val_loss=2.0, tokens_per_s=1000.0, seconds=60.0)
    train.report([row], 600, dict(modality='text', vocab_size=9))
    assert '3:00 left' in capsys.readouterr().out


def test_batches_are_windows_of_the_text_and_their_next_tokens():
    text = torch.arange(100, dtype=torch.uint8), torch.tensor([100]), False
    x, y = train.windows(text, torch.tensor([0, 7, 91]), 8, torch.device('cpu'))
    assert x.tolist() == [[s + t for t in range(8)] for s in (0, 7, 91)] and torch.equal(y, x + 1)


def test_no_window_glues_two_pieces_together():
    lengths = [20, 5, 2, 40, 9]  # shorter and longer than a window of 8 + 1
    ends = torch.tensor(lengths).cumsum(0)
    pieces = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    data = pieces * 100 + torch.arange(76), ends, False
    assert train.places(data, 8) == 76 - 8
    x, y = train.windows(data, torch.arange(76), 8, torch.device('cpu'))
    counted = y >= 0
    assert (y[counted] == x[counted] + 1 + 0 * y[counted]).all() and (y[counted] // 100 == x[:, :1].expand(-1, 8)[counted] // 100).all()
    assert (x[:, 0] // 100 == pieces).all()  # a window belongs to the piece it was drawn from
    assert counted.any(dim=1).all()  # and always has something to predict
    assert set(y[counted].tolist()) == set(data[0].tolist()) - {0, 120, 225, 327, 467}  # all but the pieces' first tokens


@pytest.mark.parametrize('lengths', [[40, 30, 8, 6, 5], [40, 5, 9], [5, 5], [40]])
def test_every_piece_that_holds_a_target_is_drawn_from(lengths):
    ends, T = torch.tensor(lengths).cumsum(0), 8
    data = torch.arange(sum(lengths)), ends, False
    x, y = train.windows(data, torch.arange(train.places(data, T)), T, torch.device('cpu'))
    assert set(y[y >= 0].tolist()) == set(range(sum(lengths))) - {0, *ends.tolist()}  # all but the pieces' first tokens


def test_every_bad_setting_is_named_in_one_message_and_nothing_is_written(here):
    words = ['--wavelet=onn', '--sed=3', '--n_head=5', '--max_steps=-4', '--dataset=foo', '--learning_rate=x', '--dtype=float12',
             '--run=a/b', '--grad_clip=nan']
    with pytest.raises(SystemExit) as error:
        prepare_data.read_settings(train.Settings, '', words)
    for named in ("'onn'", 'did you mean seed', 'n_head=5', '--max_steps=-4', 'data/foo', '--learning_rate=x must be a number',
                  'float12', '--run=a/b', '--grad_clip=nan'):
        assert named in str(error.value)
    assert list(here.iterdir()) == []


def test_values_follow_a_space_as_well_as_an_equals_sign(tiny):
    settings = prepare_data.read_settings(train.Settings, '', ['--dataset', 'tiny', '--max_steps', '7', '--bias', '--compile=off'])
    assert (settings.dataset, settings.max_steps, settings.bias, settings.compile) == ('tiny', 7, True, False)
    assert (settings.n_layer, settings.block_size) == (4, 256)
    paper = prepare_data.read_settings(train.Settings, '', ['--dataset=tiny', '--size=paper', '--n_head=4'])
    assert (paper.n_layer, paper.block_size, paper.n_head) == (10, 512, 4)


def test_a_name_that_was_given_is_not_given_twice(tiny):
    train.train(train.Settings(**SMALL, run='mine'))
    assert any('choose another name' in problem for problem in train.Settings(**SMALL, run='mine').problems())


def test_data_shorter_than_the_context_are_refused(tiny):
    with pytest.raises(SystemExit, match='fewer than one window of block_size=1024'):
        train.train(train.Settings(**{**SMALL, 'block_size': 1024}))


def test_data_that_are_not_what_meta_says_are_refused(tiny):
    (tiny / 'data/tiny/train.bin').write_bytes(b'\xff' * 7920)
    with pytest.raises(SystemExit, match='train.bin is not what meta.json says'):
        train.train(train.Settings(**SMALL))


@pytest.mark.parametrize('script', [train, prepare_data, sample])
def test_help_explains_every_setting_by_the_comment_in_the_source(script, capsys):
    with pytest.raises(SystemExit) as end:
        prepare_data.read_settings(script.Settings, script.__doc__, ['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert end.value.code == 0
    comments = re.findall(r'^    (\w+): .*?  # (.*)$', Path(script.__file__).read_text(), re.M)
    assert {name for name, _ in comments} >= {field.name for field in fields(script.Settings)}
    for field in fields(script.Settings):
        last = dict(comments)[field.name].split()[-1]
        default = 'off' if field.default is False else field.default
        assert f'--{field.name} [' in text and last + (f' [{default}]' if default not in (None, '') else '') in text


def test_a_setting_of_ones_own_works_before_it_has_a_comment(capsys):
    @dataclass
    class Mine(train.Settings):
        mine: float = 0.5
    assert prepare_data.read_settings(Mine, '', ['--mine=2']).mine == 2
    with pytest.raises(SystemExit):
        prepare_data.read_settings(Mine, '', ['--help'])
    assert '--mine [MINE] [0.5]' in ' '.join(capsys.readouterr().out.split())


def test_help_answers_without_importing_torch(here):
    done = subprocess.run([sys.executable, '-X', 'importtime', ROOT / 'train.py', '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'numpy' in done.stderr and ' torch' not in done.stderr


def test_sampling_continues_the_prompt_repeats_with_its_seed_and_saves(tiny, capsys):
    train.train(train.Settings(**SMALL))

    def sampled(**changes):
        capsys.readouterr()
        sample.main(sample.Settings(**{**dict(prompt='the quick', num_tokens=30, seed=5), **changes}))
        return capsys.readouterr().out
    first = sampled(out='out.txt')
    assert first.startswith('the quick') and len(first) == len('the quick') + 30 + 1
    assert (tiny / 'out.txt').read_text() + '\n' == first == sampled() != sampled(seed=6)
    assert sampled(temperature=0) == sampled(temperature=0, seed=6) == sampled(top_k=1, seed=7) != first
    sampled(prompt='', out='page.txt')
    assert len((tiny / 'page.txt').read_text()) == 30
    with pytest.raises(SystemExit, match="'Ω' is not in the alphabet .*abc"):
        sampled(prompt='xΩ')


def test_a_strangers_characters_cannot_steer_the_terminal(tiny, capsys):
    train.train(train.Settings(**SMALL))
    path = tiny / 'out/tiny-on/best.pt'
    checkpoint = torch.load(path, weights_only=True)
    characters = checkpoint['meta']['characters']
    escapes = dict(checkpoint['meta'], characters='\x1b\x9b' + characters[2:])
    torch.save({**checkpoint, 'meta': escapes}, path)
    capsys.readouterr()
    sample.main(sample.Settings(num_tokens=200, temperature=5, prompt='o', out='out.txt'))
    printed, saved = capsys.readouterr().out, (tiny / 'out.txt').read_text(encoding='utf-8')
    assert '\x1b' in saved and '\x9b' in saved
    assert printed == saved.replace('\x1b', '\ufffd').replace('\x9b', '\ufffd') + '\n'
    torch.save({**checkpoint, 'config': {**checkpoint['config'], '\x1b]0;title\x07': 1}}, path)
    with pytest.raises(SystemExit) as end:
        sample.main(sample.Settings())
    assert '\x1b' not in str(end.value) and ']0;title' in str(end.value)


def test_sample_py_takes_the_newest_run_and_names_every_mistake(tiny, capsys):
    train.train(train.Settings(**SMALL))
    capsys.readouterr()
    sample.main(prepare_data.read_settings(sample.Settings, '', ['--num_tokens=20', '--top_k', '3']))
    done = capsys.readouterr()
    assert len(done.out) == 21 and 'out/tiny-on/best.pt, step 20' in done.err
    with pytest.raises(SystemExit) as wrong:
        prepare_data.read_settings(sample.Settings, '', ['--run=nothing', '--top_k=0', '--temperature=-1'])
    assert all(word in str(wrong.value) for word in ('out/nothing', 'tiny-on', '--top_k=0', '--temperature=-1'))


def test_where_the_reader_of_the_text_leaves_the_file_is_said_not_to_be_written(tiny, capsys, monkeypatch):
    train.train(train.Settings(**SMALL))

    class Gone(io.StringIO):
        def write(self, text):
            if text:
                raise BrokenPipeError(32, 'Broken pipe')
    monkeypatch.setattr(sys, 'stdout', Gone())
    with pytest.raises(BrokenPipeError):
        sample.main(sample.Settings(num_tokens=20, out='out.txt'))
    assert 'out.txt is not written' in capsys.readouterr().err and not Path('out.txt').exists()


def test_the_newest_run_is_the_one_that_is_sampled(here):
    for name, when in dict(b=0, a=1, c=0.5).items():
        checkpoint = here / 'out' / name / 'best.pt'
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        os.utime(checkpoint, (when, when))
    assert sample.runs() == ['a', 'c', 'b']


def test_sampling_before_training_says_what_to_do(here):
    done = run('sample.py')
    assert done.returncode == 1 and 'train one with python train.py' in done.stderr


def test_without_a_prompt_a_line_a_loud_enough_note_or_silence_begins():
    for characters, first in {' \nab': '\n', 'ab ': ' ', 'ba': 'b'}.items():
        meta = dict(modality='text', characters=characters)
        assert decode_text(sample.prompt_tokens('', meta), characters) == first
    velocity = sample.prompt_tokens('', dict(modality='music')).tolist()
    [(_, _, _, loudness)] = sample.decode_notes([*velocity, 60, 265])  # which is no note itself
    assert 48 <= loudness <= 80
    assert sample.mu_law_decode(sample.prompt_tokens('', dict(modality='audio'))).tolist() == [0]


@pytest.fixture
def stub(here, monkeypatch):
    """A model of each modality that was never trained, and what it is told to do in place of generating."""
    def load(modality, stream):
        meta = dict(text=dict(vocab_size=3, characters='\nab'), music=dict(vocab_size=388), audio=dict(vocab_size=256, sample_rate=16000))[modality]
        model = make(vocab_size=meta['vocab_size'])
        monkeypatch.setattr(sample.GPT, 'stream', stream)
        monkeypatch.setattr(sample, 'load', lambda path: (dict(meta=dict(meta, modality=modality), step=0), model))
        (here / 'out/x').mkdir(parents=True, exist_ok=True)
    return load


def test_as_many_tokens_as_the_help_says_are_made_where_it_is_left_open(stub, monkeypatch):
    asked = []
    for modality in ('text', 'music', 'audio'):
        stub(modality, lambda model, idx, count, *_: asked.append(count) or [])
        sample.main(sample.Settings(run='x'))
    comment = re.search(r'num_tokens: .*# (.*)', Path(sample.__file__).read_text())[1]
    assert asked == [int(n.replace(',', '')) for n in re.findall(r'([\d,]+) (?:characters|events|samples)', comment)]


def test_ctrl_c_keeps_what_was_made_until_then(stub, capsys):
    def broken_off(model, idx, *_):
        yield from torch.tensor([1, 2, 1]).view(3, 1, 1)
        raise KeyboardInterrupt
    stub('text', broken_off)
    with contextlib.suppress(KeyboardInterrupt):  # which would end all of the tests
        sample.main(sample.Settings(run='x', prompt='b', out='out.txt'))
    assert Path('out.txt').read_text() == 'baba' and 'stopped after 3 tokens' in capsys.readouterr().err


def test_a_prompt_of_music_without_notes_is_refused_in_one_sentence(stub):
    stub('music', sample.GPT.stream)
    Path('empty.mid').write_bytes(write_midi([]))
    with pytest.raises(SystemExit, match='--prompt=empty.mid holds nothing to continue'):
        sample.main(sample.Settings(run='x', prompt='empty.mid'))


@pytest.mark.parametrize('device', ['cuda', 'mps'])
def test_a_device_that_is_not_there_is_named_with_the_way_out(here, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match=f'--device={device}: .*; use --device=cpu'):
        sample.main(sample.Settings(run='x', device=device))


def test_spaces_and_joiners_of_any_language_are_printed_as_they_are():
    for text in ('« Où ? »'.replace(' ', '\u202f'), 'a\xa0b', '\u3000春', 'می\u200cخواهم'):
        assert sample.printable(text) == text
    assert sample.printable('a\r\nb') == 'a\nb'  # as on Windows
