"""The README and assets/results.md: every command, run small, or found in .ci/run or beside the test that runs its parts, and
every result, from the logs."""

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
RESULTS = (ROOT / 'assets/results.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^    ((?:python|torchrun|pip|bash|cp) .*?)(?:  +#.*)?$', README + RESULTS, re.M)
INLINE = [' '.join(command.split()) for command in re.findall(r'`((?:python|torchrun|bash) [^`]+)`', README + RESULTS)]
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


@pytest.fixture
def compared(here, monkeypatch, capsys):
    """A function from settings to what --compare prints of the logs in assets with that learning rate: {label: line}; no pictures."""
    for logs in 'runs', 'learning_rates':
        shutil.copytree(ROOT / 'assets' / logs, 'out', dirs_exist_ok=True)
    monkeypatch.setattr(train, 'draw_highest_level', lambda *_: None)

    def lines(**settings):
        train.compare(train.Settings(**settings))
        found = re.findall(r'^((?:on|off|learnable|ema|past).*?)  +(\d+ +[\d.]+ .*)', capsys.readouterr().out, re.M)
        return {label: line for label, line in found if 'learning_rate' not in label}
    return lines


def numbers(line):
    """Of a line of --compare: the final loss, the range of the seeds, the step of the plain GPT's final loss, how many times sooner
    (or never)."""
    return re.match(r'\d+ +([\d.]+) (?:\(([\d.]+)-([\d.]+)\))?.*?(?:([\d,]+) steps, .* s +|(?=never))([\d.]+|never) ', line).groups()


def table_rows(text):
    return [[cell.strip(' *') for cell in line.strip('|').split('|')] for line in text.splitlines() if re.match(r'\|[^-]', line)]


@pytest.mark.parametrize('heading, settings', [
    ('A longer run', dict(max_steps=3000)), ('Longer still', dict(max_steps=10000)), ('Music', dict(dataset='midi')),
    ('A longer context', dict(max_steps=3000, block_size=512, batch_size=8)),
    ('A longer context on other data', dict(dataset='english', max_steps=1500, block_size=512, batch_size=8)),
    ('A longer context on other data', dict(dataset='wav', max_steps=1500, block_size=512, batch_size=8)),
    ('A longer context on other data', dict(dataset='midi', block_size=512, batch_size=8)),
    ('Beyond the paper', dict(dataset='english', max_steps=1500)), ('Beyond the paper', dict(dataset='wav', max_steps=1500))])
def test_a_table_of_the_results_says_what_compare_says_of_the_logs(compared, heading, settings):
    found = compared(**settings)
    table = [line for line in RESULTS.split(f'## {heading}\n')[1].split('\n## ')[0].splitlines() if re.match(r'\| .*`--wavelet', line)]
    assert len(found) >= 3 and len(found) == len(table)
    for label, line in found.items():
        wavelet, *changes = label.split(', ')
        options = [f'--wavelet={wavelet}'] * (wavelet != 'on' or not changes) + [f'--wavelet_{change}' for change in sorted(changes)]
        [row] = [row for row in table if f'`{" ".join(options)}`' in row]
        assert all(number in row for number in numbers(line) if number), label


def test_the_table_of_the_readme_says_what_compare_says_of_the_logs(compared):
    _, *rows = table_rows(README.split('## What holds')[1].split('\n## ')[0])
    assert len(rows) >= 7
    for first, *cells in rows:
        options = dict(word.removeprefix('--').split('=') for word in re.search('`(.*)`', first)[1].split())
        kinds = dict(dataset=str, learning_rate=float)
        found = compared(**{name: kinds.get(name, int)(value) for name, value in options.items()})
        for label, cell in zip(('off', 'on', 'on, max_level=3', 'past'), cells, strict=True):
            if label not in found:
                assert cell == '', (first, label)
                continue
            loss, _, _, _, sooner = numbers(found[label])
            assert re.sub(r'[* ]', '', cell) == (loss if label == 'off' else f'{loss}({sooner})'), (first, label)


def test_the_learning_rates_are_those_of_the_logs(compared):
    for path in Path('out').iterdir():
        if path.name.endswith(('-1', '-2')):  # one seed for all rates
            shutil.rmtree(path)
    _, *rows = table_rows(RESULTS.split('## The learning rate\n')[1].split('\n## ')[0])
    logs = 0
    for rate, steps, *cells in rows:
        found = compared(learning_rate=float(rate), max_steps=int(steps.replace(',', '')))
        for label, cell in zip(('off', 'on', 'on, max_level=3', 'past'), cells, strict=True):
            loss, _, _, _, sooner = numbers(found[label]) if label in found else 5 * ('',)
            assert re.sub(r'[* ]', '', cell) == (loss if label == 'off' or not loss else f'{loss}({sooner})'), (rate, steps, label)
            logs += cell != '' and rate != '0.001'
    assert logs == len(list((ROOT / 'assets/learning_rates').iterdir()))


def test_losses_in_the_text_are_those_of_the_logs(compared):
    for settings, text in ((dict(dataset='english', max_steps=3000), r'^On english .*?\n\n'), ({}, r'^## Depth\n\n.*?\n\n')):
        found = compared(**settings)
        [paragraph] = re.findall(text, RESULTS, re.M | re.S)
        assert len(found) >= 2 and all(numbers(line)[0] in paragraph for line in found.values())


def test_the_accuracies_are_those_of_the_logs(compared):
    found = compared(dataset='listops-64', block_size=63, max_steps=2000, eval_windows=1000)
    assert set(found) == {'on', 'off'}
    for label, line in found.items():
        mean, low, high = re.search(r'([\d.]+)% right \(([\d.]+)%-([\d.]+)%\)', line).groups()
        assert re.search(rf'\| wavelet {label} \| \**{mean}\** \| {low} .* {high} \|', README)


def test_the_python_of_the_readme_draws_a_filter_of_ones_own(here):
    [lines] = re.findall(r'^    (from wavelet_gpt import draw_dependence\n(?:    .*\n)+)', README, re.M)
    exec(lines.replace('\n    ', '\n'), dict(my_filter=lambda x: wavelet_gpt.causal_ema(x, 0.5)))
    assert Path('mine.png').read_bytes().startswith(b'\x89PNG')


def test_every_picture_and_file_that_is_linked_is_there():
    for folder, text in (ROOT, README), (ROOT / 'assets', RESULTS):
        links = re.findall(r'\]\(([^)#]+)', text)
        assert len(links) > 3
        for link in links:
            assert link.startswith('https://') or (folder / link).exists(), link


def test_the_line_counts_are_those_of_the_files():
    counts = dict(re.findall(r'\[(\w+\.py)\]\(\1\) \| (\d+) \|', README))
    assert counts == {name: str(len((ROOT / name).read_text(encoding='utf-8').splitlines())) for name in counts} and len(counts) == 4


def test_code_that_the_readme_quotes_stands_in_the_model():
    source = (ROOT / 'wavelet_gpt.py').read_text(encoding='utf-8')
    quoted = re.findall(r'^    (x = .*)$', README, re.M)
    assert quoted and all(line in source for line in quoted)
