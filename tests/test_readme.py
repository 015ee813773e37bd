"""Every command of the README, run small, or found in .ci/run or beside the test that runs its parts."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import prepare_data
import sample
import train
import wavelet_gpt
from conftest import ROOT

README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^    ((?:python|torchrun|pip|bash|cp) .*?)(?:  +#.*)?$', README, re.M)
INLINE = [' '.join(command.split()) for command in re.findall(r'`((?:python|torchrun|bash) [^`]+)`', README)]
COMMANDS = sorted({part.strip() for line in BLOCKS + INLINE for part in line.split('&&') if 'NAME' not in part})
MODALITIES = dict(maestro='music', tunes='music', midi='music', youtubemix='audio', sounds='audio', wav='audio')
DOWNLOADS = 'text8', 'maestro', 'youtubemix', 'imdb', 'cifar10'  # other tests run them, on archives of the same layout
TINY = dict(n_layer=2, n_head=2, n_embd=16, block_size=32, batch_size=2, max_steps=2, eval_interval=1, eval_windows=2, device='cpu',
            compile=False)


@pytest.fixture
def reader(here, monkeypatch):
    """A reader with a book, a tune and a sound, who looks at no picture and at no sample of text behind a training."""
    monkeypatch.setattr(sample, 'draw_audio', lambda *_: None)
    monkeypatch.setattr(wavelet_gpt.GPT, 'generate', lambda model, idx, *_, **__: idx)
    Path('book.txt').write_text('once upon a time there was a book\n' * 300)
    Path('folder').mkdir()
    notes = [(0.1 * n, 0.1 * n + 0.2, 40 + n % 40, 64) for n in range(200)]
    for name in 'a', 'b', 'c':
        (Path('folder') / f'{name}.mid').write_bytes(sample.write_midi(notes))
        (Path('folder') / f'{name}.wav').write_bytes(sample.write_wav(np.sin(np.arange(8000) / 9), 16000))
    Path('mine.mid').write_bytes(sample.write_midi(notes[:5]))
    return here


def prepare(name):
    """Random tokens as data/<name>, of the kind that the name promises."""
    if name.startswith(('listops', 'imdb', 'cifar10')):
        pieces = [(split, np.array([0, *[7, 8] * 15, 4, 8])) for split in ('train', 'val', 'test') for _ in range(4)]
        return prepare_data.write_pieces(name, pieces, dict(modality='listops', vocab_size=15, labels=list('0123456789')))
    modality = MODALITIES.get(name, 'text')
    meta = dict(text=dict(vocab_size=95, characters=''.join(map(chr, range(32, 127)))), music=dict(vocab_size=388),
                audio=dict(vocab_size=256, sample_rate=16000))[modality]
    tokens = np.random.default_rng(0).integers(meta['vocab_size'], size=3000)
    prepare_data.write_dataset(name, dict(train=tokens, val=tokens, test=tokens), dict(meta, modality=modality))


def option(words, name, otherwise):
    return next((word.split('=', 1)[1] for word in words if word.startswith(f'--{name}=')), otherwise)


def train_small(words):
    prepare(option(words, 'dataset', 'stdlib'))
    settings = prepare_data.read_settings(train.Settings, train.__doc__, words)
    for name, value in TINY.items():
        setattr(settings, name, value)
    train.main(settings)


@pytest.mark.parametrize('command', [command for command in COMMANDS if re.match(r'(python|torchrun\b.*) train\.py', command)])
def test_a_training_command_trains(reader, command):
    words = shlex.split(command)
    words = words[words.index('train.py') + 1:]
    if '--compare' in words or '--resume' in words:
        run = option(words, 'run', 'stdlib-on')
        train_small([word for word in words if word not in ('--compare', '--resume')] or [f'--run={run}'])
    if '--resume' in words:
        settings = prepare_data.read_settings(train.Settings, train.__doc__, words)
        assert settings.run_to_resume()
        return train.main(settings)
    train_small(words)


@pytest.mark.parametrize('command', [command for command in COMMANDS if command.startswith('python sample.py')])
def test_a_sampling_command_samples(reader, command):
    words = shlex.split(command)[2:]
    run = option(words, 'run', 'stdlib-on')
    dataset = run.removesuffix('-on')
    train_small([f'--dataset={dataset}', f'--run={run}'])
    settings = prepare_data.read_settings(sample.Settings, sample.__doc__, words)
    settings.num_tokens = 3
    sample.main(settings)


@pytest.mark.parametrize('command', [command for command in COMMANDS if command.startswith('python prepare_data.py')])
def test_a_preparing_command_prepares_or_is_a_download_that_other_tests_run(reader, command):
    words = shlex.split(command)[2:]
    settings = prepare_data.read_settings(prepare_data.Settings, prepare_data.__doc__, words, positional='dataset')
    if settings.dataset in DOWNLOADS or words == ['listops'] or not words:
        return
    if settings.dataset == 'listops':
        words.append('--examples=10')
    prepare_data.main(words)
    name = settings.name or 'listops' + (f'-{settings.max_length}' if settings.max_length else '')
    assert (Path('data') / name / 'meta.json').exists()


@pytest.mark.parametrize('command', [command for command in COMMANDS if 'pytest ' in command and 'pip' not in command])
def test_a_testing_command_finds_tests_of_that_name(command):
    words = shlex.split(command)
    files = [word for word in words if word.startswith('tests')]
    assert files and all((ROOT / file).exists() for file in files)
    if '-k' in words:
        wanted = words[words.index('-k') + 1]
        assert any(wanted in line for file in files for line in (ROOT / file).read_text(encoding='utf-8').splitlines()
                   if line.startswith('def test_')) or wanted in exercise_names()


def exercise_names():
    from test_exercises import NAMES
    return [f'{n}_{name}' for n, name in enumerate(NAMES, 1)]


def test_the_other_commands_are_those_that_ci_or_other_tests_run():
    others = {command for command in COMMANDS if not re.search(r' (train|sample|prepare_data)\.py|-m pytest', command)}
    by_tests = {'python tests/leak.py': 'test_lesson.py', 'python tests/exercises.py': 'test_exercises.py',
                'python tests/benchmark.py': 'test_benchmark.py'}
    by_ci = {'pip install -r requirements.txt': 'pip install --quiet -r requirements.txt', 'python wavelet_gpt.py': 'wavelet_gpt.py"',
             'pip install pytest pytest-xdist PyWavelets mido': 'pip install --quiet pytest pytest-xdist PyWavelets mido',
             'cp -rp assets/runs/. out/': 'cp -rp "$repository/assets/runs/." out/'}
    assert others == {*by_tests, *by_ci, 'bash .ci/run'}
    for command, file in by_tests.items():
        assert re.search(r'\b' + Path(command.split()[1]).stem + r'\b', (ROOT / 'tests' / file).read_text(encoding='utf-8'))
    ci = (ROOT / '.ci/run').read_text()
    assert all(line in ci for line in by_ci.values())


def assert_the_table_behind(heading, said):
    """Every line that compare said stands as a row in that paragraph's table: the options, loss, range, steps, ratio."""
    rows = re.findall(r'^((?:on|off|learnable|ema|past).*?)  +\d+ +([\d.]+) (?:\(([\d.]+)-([\d.]+)\))?'
                      r'.*?(?:([\d,]+) steps, .* s +([\d.]+)|(never)) ', said, re.M)
    table = [line for line in README.split(f'**{heading}**')[1].split('\n**')[0].splitlines() if re.match(r'\| .*`--wavelet', line)]
    assert len(rows) >= 3 and len(rows) == len(table)
    for label, *numbers in rows:
        wavelet, *changes = label.split(', ')
        options = [f'--wavelet={wavelet}'] * (wavelet != 'on' or not changes) + [f'--wavelet_{change}' for change in changes]
        [line] = [line for line in table if f'`{" ".join(options)}`' in line]
        assert all(number in line for number in numbers), label


def test_the_results_are_those_of_the_logs_in_assets(here, capsys):
    shutil.copytree(ROOT / 'assets/runs', 'out')
    train.compare(train.Settings(max_steps=3000))
    assert_the_table_behind('A longer run.', capsys.readouterr().out)
    train.compare(train.Settings(max_steps=10000))
    assert_the_table_behind('Longer still.', capsys.readouterr().out)
    train.compare(train.Settings(dataset='english', max_steps=3000))
    [english] = re.findall(r'^On english .*?\n\n', README, re.M | re.S)
    losses = re.findall(r'^(?:on|off).*?  +1 +([\d.]+) ', capsys.readouterr().out, re.M)
    assert len(losses) == 2 and all(loss in english for loss in losses)
    train.compare(train.Settings(max_steps=3000, block_size=512, batch_size=8))
    assert_the_table_behind('A longer context.', capsys.readouterr().out)
    for dataset in 'english', 'wav':
        train.compare(train.Settings(dataset=dataset, max_steps=1500))
        assert_the_table_behind('Beyond the paper.', capsys.readouterr().out)
    train.compare(train.Settings(dataset='midi'))
    assert_the_table_behind('Music.', capsys.readouterr().out)
    train.compare(train.Settings())
    [depth] = re.findall(r'^\*\*Depth\.\*\*.*?\n\n', README, re.M | re.S)
    losses = re.findall(r'^(?:on|off).*?  +1 +([\d.]+) ', capsys.readouterr().out, re.M)
    assert len(losses) >= 3 and all(loss in depth for loss in losses)
    train.compare(train.Settings(dataset='listops-64', block_size=63, max_steps=2000, eval_windows=1000))
    accuracies = re.findall(r'^(on|off) .* ([\d.]+)% right \(([\d.]+)%-([\d.]+)%\)', capsys.readouterr().out, re.M)
    assert len(accuracies) == 2
    for label, mean, low, high in accuracies:
        assert re.search(rf'\| wavelet {label} \| \**{mean}\** \| {low} .* {high} \|', README)


def test_the_learning_rates_are_those_of_the_logs_in_assets(here, capsys):
    shutil.copytree(ROOT / 'assets/learning_rates', 'out')
    for wavelet in 'on', 'off':
        shutil.copytree(ROOT / f'assets/runs/stdlib-600-{wavelet}-1337', f'out/stdlib-600-{wavelet}-1337')
    table = README.split('**The learning rate.**')[1].split('\n**')[0]
    rows = re.findall(r'^\| (0\.\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|$', table, re.M)
    assert len(rows) == len(list(Path('out').iterdir())) / 2
    for rate, steps, plain, wavelet, after, ratio in rows:
        train.compare(train.Settings(learning_rate=float(rate), max_steps=int(steps.replace(',', ''))))
        found = dict(re.findall(r'^(on|off)  +1 +(.*)', capsys.readouterr().out, re.M))
        assert found['off'].split()[0] == plain
        loss, _, step, _, _, _, sooner, *_ = found['on'].split()
        assert (loss, step, sooner) == (wavelet, after, ratio), rate


def test_the_python_of_the_readme_draws_a_filter_of_ones_own(here):
    [lines] = re.findall(r'^    (from wavelet_gpt import draw_dependence\n(?:    .*\n)+)', README, re.M)
    exec(lines.replace('\n    ', '\n'), dict(my_filter=lambda x: wavelet_gpt.causal_ema(x, 0.5)))
    assert Path('mine.png').read_bytes().startswith(b'\x89PNG')


def test_every_picture_and_file_that_is_linked_is_there():
    links = re.findall(r'\]\(([^)#]+)\)', README)
    assert len(links) > 4
    for link in links:
        assert link.startswith('https://') or (ROOT / link).exists(), link


def test_the_line_counts_are_those_of_the_files():
    counts = dict(re.findall(r'\[(\w+\.py)\]\(\1\) \| (\d+) \|', README))
    assert counts == {name: str(len((ROOT / name).read_text(encoding='utf-8').splitlines())) for name in counts} and len(counts) == 4


def test_code_that_the_readme_quotes_stands_in_the_model():
    source = (ROOT / 'wavelet_gpt.py').read_text(encoding='utf-8')
    quoted = re.findall(r'^    (x = .*)$', README, re.M)
    assert quoted and all(line in source for line in quoted)
