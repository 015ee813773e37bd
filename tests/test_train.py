"""Training: what a run leaves behind, how it is broken off and resumed, what is compared."""

import csv
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import train
from conftest import ROOT
from wavelet_gpt import GPT, GPTConfig

SMALL = ('--dataset=tiny --n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 '
         '--max_steps=12 --eval_interval=4 --device=cpu').split()
TEXT = 'the quick brown fox jumps over the lazy dog\n' * 100

def write_text(name, text):
    characters = ''.join(sorted(set(text)))
    tokens = prepare_data.encode_text(text, characters)
    prepare_data.write_dataset(name, dict(train=tokens, val=tokens[:1000]), dict(
        modality='text', vocab_size=len(characters), characters=characters, source='a test'))

@pytest.fixture
def tiny(here):
    write_text('tiny', TEXT)
    return here

@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(train, 'save_picture', lambda *_, **__: None)

def settings(*words):
    sys.argv = ['train.py', *words]
    return train.read_settings()

def run(*words):
    """The last checkpoint and the model of a training with the settings SMALL and words."""
    return train.train(*settings(*SMALL, *words))

def resume(*words):
    return train.train(*settings('--resume', *words))

def weights(run):
    return torch.cat([p.detach().flatten() for p in run[1].parameters()])

def losses(run):
    return [(row['step'], row['train_loss'], row['val_loss']) for row in run[0]['rows']]

def ends(*words):
    """How a run that fails ends, in words or in a status that is not 0."""
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code not in (None, 0)
    return str(end.value.code)

# --- a run

def test_a_run_leaves_a_log_two_checkpoints_and_a_picture(tiny, capsys):
    sys.argv = ['train.py', *SMALL]
    train.main()
    out = Path('out/tiny-on')
    assert {path.name for path in out.iterdir()} == {'log.csv', 'last.pt', 'best.pt', 'loss.png'}
    assert (out / 'loss.png').read_bytes().startswith(b'\x89PNG')
    assert Path('out/tiny.png').read_bytes().startswith(b'\x89PNG')
    with open(out / 'log.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['step', 'train_loss', 'val_loss', 'tokens_per_s', 'seconds']
    assert [row['step'] for row in rows] == ['0', '4', '8', '12']
    assert float(rows[-1]['val_loss']) < float(rows[0]['val_loss'])
    last = torch.load(out / 'last.pt', weights_only=True)
    model = GPT(GPTConfig(**last['config']))
    model.load_state_dict(last['model'], strict=True)
    said = capsys.readouterr().out
    assert f'{math.log(len(set(TEXT))):.3f}' in said and 'tiny-on' in said.splitlines()[-2]

def test_a_name_that_is_taken_gets_a_number_and_a_given_one_is_refused(tiny):
    first = run()
    before = Path('out/tiny-on/last.pt').read_bytes()
    second = run('--seed=1')
    assert second[0]['settings']['run'] == 'tiny-on-2'
    assert not torch.equal(weights(first), weights(second))
    ends('--run=tiny-on')
    assert Path('out/tiny-on/last.pt').read_bytes() == before
    Path('out/empty').mkdir()  # of a run that was stopped before its first row
    assert run('--run=empty')[0]['settings']['run'] == 'empty'

def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tiny, monkeypatch):
    lows = iter([3.0, 2.0, 1.0, 2.5, 2.7])
    monkeypatch.setattr(train, 'evaluate', lambda *_: (next(lows), 0.0))
    run()
    assert torch.load('out/tiny-on/best.pt', weights_only=True)['step'] == 4
    assert torch.load('out/tiny-on/last.pt', weights_only=True)['step'] == 12

def test_evaluating_more_often_changes_no_training(tiny):
    seldom = run('--dropout=0.1')
    assert torch.equal(weights(seldom), weights(run('--dropout=0.1', '--eval_interval=1')))

def test_on_and_off_see_the_same_batches_from_the_same_initial_weights(tiny):
    on, off = run('--wavelet=on', '--wavelet_fraction=0'), run('--wavelet=off')
    assert torch.equal(weights(on), weights(off)) and losses(on) == losses(off)

def test_the_batches_of_text_are_drawn_from_the_seed_alone(tiny, monkeypatch):
    drawn, get_batch = [], train.Data.get_batch

    def watched(data, split, starts):
        drawn.append((split, starts.tolist()))
        return get_batch(data, split, starts)
    monkeypatch.setattr(train.Data, 'get_batch', watched)
    run('--dropout=0.2', '--seed=7')
    order = torch.Generator().manual_seed(7)
    n = len(TEXT) - 16
    expected = [torch.randint(n, (4,), generator=order).tolist() for _ in range(12)]
    evaluated = torch.linspace(0, n - 1, 128, dtype=torch.double).long().tolist()
    of_train = [starts for split, starts in drawn if split == 'train']
    assert of_train[32:] == expected and sum(of_train[:32], []) == evaluated

def test_a_batch_is_the_stream_and_its_targets_are_one_step_later(tiny):
    data = train.Data(settings(*SMALL)[0], torch.device('cpu'))
    tokens = torch.from_numpy(np.array(data.splits['train'])).long()
    x, y = data.get_batch('train', torch.tensor([0, 7, len(tokens) - 17]))
    for n, start in enumerate((0, 7, len(tokens) - 17)):
        assert torch.equal(x[n], tokens[start:start + 16])
        assert torch.equal(y[n], tokens[start + 1:start + 17])

@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_learns_and_resumes(tiny, dtype):
    rows = run(f'--dtype={dtype}', '--max_steps=40')[0]['rows']
    assert rows[-1]['val_loss'] < rows[0]['val_loss'] - 0.05
    assert losses(resume()) == losses([dict(rows=rows)])

def test_a_compiler_that_fails_ends_no_run(tiny, monkeypatch):
    def broken(model):
        raise RuntimeError('no C compiler')
    plain = run()
    monkeypatch.setattr(torch, 'compile', broken)
    assert torch.equal(weights(run('--compile=on')), weights(plain))

def test_the_rate_warms_up_peaks_and_falls_to_a_tenth(tiny):
    args, _ = settings(*SMALL, '--max_steps=600', '--learning_rate=1')
    rates = [train.get_lr(step, args) for step in range(600)]
    assert rates[0] == 0.01 and max(rates) == rates[100] == 1
    assert rates[:101] == sorted(rates[:101]) and rates[100:] == sorted(rates[100:])[::-1]
    assert 0.1 <= rates[-1] < 0.1001
    for steps in 1, 2, 6, 7:
        args.max_steps = steps
        assert all(0 < train.get_lr(step, args) <= 1 for step in range(steps))

def test_every_step_has_its_rate_a_short_gradient_and_decay_on_matrices_only(tiny, monkeypatch):
    seen, step = [], torch.optim.AdamW.step

    def watched(optimizer, *words):
        for group in optimizer.param_groups:
            assert all((p.dim() == 2) == (group['weight_decay'] > 0) for p in group['params'])
        gradient = [p.grad for group in optimizer.param_groups for p in group['params']]
        norm = torch.cat([g.flatten() for g in gradient]).norm().item()
        seen.append((optimizer.param_groups[0]['lr'], norm))
        return step(optimizer, *words)
    monkeypatch.setattr(torch.optim.AdamW, 'step', watched)
    run('--bias=on', '--wavelet=learnable')
    args, _ = settings(*SMALL)
    assert [rate for rate, _ in seen] == [train.get_lr(step, args) for step in range(12)]
    assert max(norm for _, norm in seen) <= 1.0001

# --- breaking off and going on

def break_off(monkeypatch, at, start, *words):
    """Train until step at, where somebody types Ctrl-C."""
    def rate(step, args):
        if step == at:
            raise KeyboardInterrupt
        return get_lr(step, args)
    get_lr = train.get_lr
    with monkeypatch.context() as patch:
        patch.setattr(train, 'get_lr', rate)
        with pytest.raises(KeyboardInterrupt):
            start(*words)

def test_a_run_broken_off_after_any_row_ends_bit_for_bit_as_one_that_was_not(tiny, monkeypatch):
    words = ['--dropout=0.2', '--dtype=float16', '--wavelet=learnable']
    whole = run(*words)
    for at in 1, 5, 9:
        break_off(monkeypatch, at, run, *words)
        torch.manual_seed(0)  # nothing may depend on what happened in between
        resumed = resume()
        assert resumed[0]['settings']['run'] != whole[0]['settings']['run']
        assert torch.equal(weights(resumed), weights(whole)) and losses(resumed) == losses(whole)

def test_a_run_may_be_broken_off_twice_and_evaluated_otherwise(tiny, monkeypatch):
    whole = run('--dropout=0.2')
    break_off(monkeypatch, 5, run, '--dropout=0.2', '--run=broken')
    break_off(monkeypatch, 11, resume, '--run=broken', '--eval_interval=5')
    run('--run=b')
    resumed = resume('--run=broken')
    assert torch.equal(weights(resumed), weights(whole))
    assert [row['step'] for row in resumed[0]['rows']] == [0, 4, 5, 10, 12]
    with open('out/broken/log.csv', newline='') as file:
        assert [row['step'] for row in csv.DictReader(file)] == ['0', '4', '5', '10', '12']

def test_a_resumed_run_tells_the_time_left_at_its_new_pace(tiny, monkeypatch, capsys):
    break_off(monkeypatch, 5, run)
    checkpoint = torch.load('out/tiny-on/last.pt', weights_only=True)
    checkpoint['rows'][-1]['seconds'] = 1e6  # on a slower machine
    torch.save(checkpoint, 'out/tiny-on/last.pt')
    resume()
    line = next(line for line in capsys.readouterr().out.splitlines() if ' 8/12 ' in line)
    assert line.endswith(' 0:00 left')

def test_a_resumed_run_keeps_its_settings_and_its_data(tiny, monkeypatch):
    break_off(monkeypatch, 5, run)
    before = Path('out/tiny-on/last.pt').read_bytes()
    for word in '--seed=2', '--max_steps=13', '--wavelet=off', '--learning_rate=1', '--size=paper':
        with pytest.raises(SystemExit) as end:
            resume(word)
        assert end.value.code != 0
    write_text('tiny', TEXT.replace('fox', 'cat'))
    with pytest.raises(SystemExit):
        resume()
    assert Path('out/tiny-on/last.pt').read_bytes() == before

def test_a_checkpoint_that_would_run_code_runs_none(tiny):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, ('out/harm',))
    run()
    torch.save(dict(model=Evil()), 'out/tiny-on/last.pt')
    with pytest.raises(SystemExit):
        resume()
    run('--wavelet=off')
    train.compare(*[torch.load('out/tiny-off/last.pt', weights_only=True)[name]
                    for name in ('settings', 'meta')])
    assert not Path('out/harm').exists()

@pytest.mark.parametrize('where, step', [('Data', None), ('get_lr', None), ('finished_runs', 12),
                                         ('torch.optim.AdamW.step', 0), ('save_picture', 12)])
def test_ctrl_c_says_how_to_go_on_where_that_can_be(tiny, monkeypatch, no_pictures, where, step):
    monkeypatch.setattr(sys, 'argv', ['train.py', *SMALL])
    monkeypatch.setattr(f'train.{where}', lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit, match='stopped') as end:
        train.main()
    assert ('--resume --run=tiny-on' in str(end.value)) == (step is not None)
    if step is not None:
        assert torch.load('out/tiny-on/last.pt', weights_only=True)['step'] == step

def test_a_reader_that_is_gone_ends_a_comparison_quietly(tiny, monkeypatch):
    run()
    reads, writes = os.pipe()
    os.close(reads)  # as head does when it has seen enough
    monkeypatch.setattr(sys, 'stdout', open(writes, 'w'))
    monkeypatch.setattr(sys, 'argv', ['train.py', *SMALL, '--compare'])
    with pytest.raises(SystemExit, match='stopped'):
        train.main()

def test_kill_9_leaves_a_checkpoint_from_which_the_run_goes_on(tiny, monkeypatch):
    words = [*SMALL, '--eval_interval=1', '--max_steps=100000', '--run=killed']
    with subprocess.Popen([sys.executable, ROOT / 'train.py', *words],
                          stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('step     7'):
                time.sleep(0.01)
                process.kill()
                break
    last = torch.load('out/killed/last.pt', weights_only=True)
    assert last['step'] >= 6 and last['rows'][-1]['step'] == last['step']
    break_off(monkeypatch, last['step'] + 2, resume)
    assert torch.load('out/killed/last.pt', weights_only=True)['step'] > last['step']

def test_a_full_disk_ends_in_one_sentence_and_leaves_the_last_checkpoint(tiny, monkeypatch):
    save, saved = train.save, []

    def full(checkpoint):
        if checkpoint['step'] == 8:  # from now on no file may be longer than 1,000 bytes
            saved.append(Path('out/tiny-on/last.pt').read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        save(checkpoint)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(train, 'save', full)
    try:
        assert 'out' in ends()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path('out/tiny-on/last.pt').read_bytes() == saved[0]
    assert not list(Path('out').rglob('*.part'))

def test_a_loss_that_is_no_number_is_never_saved(tiny):
    assert '1e+30' in ends('--learning_rate=1e30')
    assert torch.load('out/tiny-on/last.pt', weights_only=True)['step'] == 0

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('tried to allocate'), MemoryError()])
def test_too_little_memory_says_what_to_lower(tiny, monkeypatch, error):
    def forward(*_):
        raise error
    monkeypatch.setattr(GPT, 'forward', forward)
    monkeypatch.setattr(sys, 'argv', ['train.py', *SMALL])
    with pytest.raises(SystemExit, match='--batch_size'):
        train.main()

@pytest.mark.parametrize('word', ['--n_embd=15', '--dataset=none', '--block_size=5000',
                                  '--n_layer=0', '--wavelet=of', '--learning_rate=0',
                                  '--wavelet_max_level=9', '--n_layer=1', '--dropout=2',
                                  '--resume'])
def test_a_setting_that_cannot_be_is_refused_and_leaves_nothing(tiny, word):
    ends(word)
    assert not Path('out').exists()

# --- several processes

def test_two_processes_that_share_the_batches_equal_one(tiny, monkeypatch):
    one = run('--run=one')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # as torchrun would start them; this process is the first
    for name, value in dict(TORCHELASTIC_RUN_ID=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                            WORLD_SIZE=2, RANK=1, LOCAL_RANK=1).items():
        monkeypatch.setenv(name, str(value))
    second = subprocess.Popen([sys.executable, ROOT / 'train.py', *SMALL, '--run=two'],
                              stdout=subprocess.PIPE)
    monkeypatch.setenv('RANK', '0')
    two = run('--run=two')
    assert second.communicate(timeout=60)[0] == b'' and second.returncode == 0
    torch.testing.assert_close(weights(two), weights(one), atol=1e-5, rtol=0)
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)

@pytest.mark.parametrize('left', [dict(RANK=''), dict(RANK='1'), dict(WORLD_SIZE='2')])
def test_a_rank_left_over_in_the_environment_changes_nothing(tiny, monkeypatch, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert run()[0]['step'] == 12

# --- labelled data

def write_labelled(n=200, seed=0, labels=None, splits=('train', 'val', 'test')):
    """Rows of 1 to 6 tokens 0..3, the label, padding. The label is the first token's parity."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, 7), int)
    for row in rows:
        length = rng.integers(1, 7)
        row[:length] = rng.integers(4, size=length)
        row[length] = 4 + row[0] % 2 if labels is None else 4 + labels
    parts = dict(zip(splits, (rows, rows[:50], rows[50:90])))
    meta = dict(modality='listops', vocab_size=6, labels=['even', 'odd'], source='a test')
    prepare_data.write_dataset('tiny', parts, meta)
    return rows

LABELLED = [word for word in SMALL if 'block_size' not in word]

def test_a_tiny_labelled_task_is_solved_to_100_percent(here):
    rows = write_labelled()
    words = ['--max_steps=150', '--eval_interval=150', '--learning_rate=0.02', '--batch_size=16']
    last, model = train.train(*settings(*LABELLED, *words))
    assert last['accuracy'] == dict(val=1, test=1) and last['rows'][-1]['val_accuracy'] == 1
    assert last['settings']['block_size'] == 6
    # one example at a time, without padding
    right = [model(torch.tensor([row[:list(row >= 4).index(True)].tolist()]))[0][0, -1].argmax()
             for row in rows[50:90]]
    assert [int(token) for token in right] == [4 + row[0] % 2 for row in rows[50:90]]

def test_a_label_and_the_padding_behind_it_cannot_be_seen(here):
    torch.manual_seed(0)
    seen = []
    for label in 0, 1:
        rows = write_labelled(labels=label)
        data = train.Data(settings(*LABELLED)[0], torch.device('cpu'))
        x, y = data.get_batch('train', torch.arange(200))
        assert ((y >= 0).sum(dim=1) == 1).all() and (y[y >= 0] == 4 + label).all()
        config = GPTConfig(block_size=6, vocab_size=6, n_layer=2, n_head=2, n_embd=16)
        model = seen[0][0] if seen else GPT(config)
        seen.append((model, model(x)[0][y >= 0]))
    assert torch.equal(seen[0][1], seen[1][1])

def test_a_row_that_would_be_cut_is_refused(here):
    write_labelled()
    ends('--block_size=4')
    assert settings(*LABELLED, '--block_size=6')[0].block_size == 6

def test_labelled_data_may_lack_a_test_split(here, no_pictures, capsys):
    write_labelled(splits=('train', 'val'))
    last, _ = train.train(*settings(*LABELLED))
    assert f'{last["accuracy"]["val"]:.1%} right' in table(capsys, last)[-1]

# --- the comparison

def finished(name, losses, **changes):
    """A run with these losses every 100 steps, as train.py would have left it."""
    args, _ = settings('--dataset=tiny', f'--max_steps={100 * len(losses) - 100}')
    rows = [dict(step=100 * n, train_loss=loss, val_loss=loss, tokens_per_s=1.0, seconds=10.0 * n)
            for n, loss in enumerate(losses)]
    kept = dict(vars(args), **changes)
    Path('out', name).mkdir(parents=True)
    checkpoint = dict(settings=kept, meta=prepare_data.read_meta('tiny'), rows=rows,
                      parameters=1000, step=rows[-1]['step'])
    torch.save(checkpoint, Path('out', name, 'last.pt'))
    return checkpoint

def table(capsys, checkpoint):
    capsys.readouterr()
    train.compare(checkpoint['settings'], checkpoint['meta'])
    return capsys.readouterr().out.splitlines()

def test_the_table_says_how_many_times_fewer_steps(tiny, no_pictures, capsys):
    plain = finished('plain', [5, 4, 3, 2, 2], wavelet='off')
    finished('fast', [5, 2, 1.5, 1, 1.25], wavelet='on', seed=3)
    finished('slow', [5, 4, 4, 4, 4], wavelet='past')
    *_, fast, off, slow = table(capsys, plain)
    assert 'fast' in fast and '1.250' in fast and '1.000' in fast and ' 3.00 ' in fast
    assert '100 steps, 10 s' in fast
    assert 'plain' in off and ' 1.00 ' in off and '300 steps' in off
    assert 'slow' in slow and 'never' in slow

def test_runs_that_do_not_compare_are_left_out_by_name(tiny, no_pictures, capsys):
    plain = finished('plain', [5, 4, 3], wavelet='off')
    finished('longer', [5, 4, 3, 2])
    finished('other-rate', [5, 4, 3], learning_rate=1.0)
    broken = finished('unfinished', [5, 4, 3])
    torch.save(dict(broken, rows=broken['rows'][:2]), 'out/unfinished/last.pt')
    torch.save(dict(model={}, settings=dict(eval_windows=128)), 'out/unfinished/best.pt')
    Path('out/old').mkdir()
    torch.save(dict(settings=dict(eval_windows=128), meta={}, step=1), 'out/old/last.pt')
    Path('out/damaged').mkdir()
    Path('out/damaged/last.pt').write_bytes(b'PK')
    left_out, _, *rows = table(capsys, plain)
    assert len(rows) == 1 and 'plain' in rows[0]
    for name in 'longer', 'other-rate', 'unfinished', 'old', 'damaged':
        assert name in left_out
    write_text('tiny', TEXT[::-1])
    other = dict(plain, meta=prepare_data.read_meta('tiny'))
    with pytest.raises(SystemExit):
        table(capsys, other)
