"""What results.md and the README quote, and what assets/figures.py makes of a user's runs."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'assets')]
import figures
import train
from prepare_data import write_dataset
LOSS = r'\b\d\.\d{3}\b'

@pytest.mark.parametrize('page', ['assets/results.md', 'README.md'])
def test_every_measured_row_of_a_table_comes_out_of_runs_csv(page):
    printed = '\n'.join(figures.tables(figures.group_runs(figures.read_csv())))
    text = (ROOT / page).read_text(encoding='utf-8')
    measured = [line for line in text.splitlines() if re.match(rf'\|.*{LOSS}', line)]
    assert measured and set(measured) <= set(printed.splitlines())
    if page == 'assets/results.md':  # also what is quoted in its sentences
        assert set(re.findall(LOSS, text)) <= set(re.findall(LOSS, printed))

def test_a_mean_of_seeds_is_compared_where_it_crosses_the_plain_curve():
    plain = {0: 4.0, 10: 2.0, 20: 1.0}
    low, high = {0: 4.0, 10: 0.0, 20: 0.5}, {0: 4.0, 10: 1.0, 20: 0.7}
    models = {'plain GPT': {'a': plain}, 'past': {'b': low, 'c': high}}
    # the mean falls from 4 to 0.5 in 10 steps: it is at 1 after 60/7, and 20 / (60/7) = 2.33
    assert figures.cell(models, 'past', 20) == '0.600 ± 0.100 (2.33)'
    assert figures.cell(models, 'plain GPT', 20) == '1.000'

def test_best_rates_are_each_models_own():
    row = dict(figures.read_csv()[0], split='val', step=0)
    rows = [dict(row, run=f'{wavelet}{rate}', wavelet=wavelet, learning_rate=rate, val_loss=loss)
            for wavelet, rate, loss in [('off', 0.1, 3), ('off', 0.2, 2), ('off', 0.4, 4),
                                        ('on', 0.2, 3), ('on', 0.4, 1)]]
    groups = figures.group_runs(rows)
    best, = [models for setup, models in groups.items() if setup.learning_rate == 0]
    assert [list(runs) for runs in best.values()] == [['off0.2'], ['on0.4']]
    assert not any(setup.learning_rate == 0 for setup in figures.group_runs(rows[:1]))

def test_the_lowest_loss_counts_where_data_are_few_and_the_share_right_where_they_have_labels():
    row = dict(figures.read_csv()[0], dropout=0.2)
    rows = [dict(row, step=n, val_loss=loss) for n, loss in enumerate((3, 1, 2))]
    rows.append(dict(row, step=2, split='test', val_loss='', val_accuracy='0.25'))
    models, = figures.group_runs(rows).values()
    assert figures.cell(models, 'levels I to III', 2) == '1.000, 25.0%'

def test_own_runs_are_averaged_drawn_and_added(tmp_path, monkeypatch, capsys):
    def call(main, *arguments):
        monkeypatch.setattr(sys, 'argv', ['script', *arguments])
        main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, 'save_picture', lambda *_: None)
    splits = dict(train=np.arange(400) % 5, val=np.arange(100) % 5)
    write_dataset('tiny', splits, dict(modality='bytes', vocab_size=5, source='numbers'))
    for kind, seed in ('off', 1), ('off', 2), ('learnable', 1):
        call(train.main, '--dataset=tiny', f'--wavelet={kind}', f'--seed={seed}', '--n_layer=2',
             '--n_head=1', '--n_embd=8', '--block_size=8', '--max_steps=2')
    Path('out/older').mkdir()
    Path('out/older/last.pt').write_bytes(b'no checkpoint')
    output = call(figures.main, '--out=out')
    assert re.search(rf'plain GPT . {LOSS} ± 0', output) and 'older' in output
    assert len([*Path('out').rglob('*.png')]) == 2  # curves, and the kernels of the learnable one

    first = figures.RUNS.read_text().splitlines(keepends=True)[:2]
    monkeypatch.setattr(figures, 'RUNS', tmp_path / 'runs.csv')
    figures.RUNS.write_text(''.join(first))
    call(figures.main, '--add', 'out/tiny-off', '--machine=mine')
    rows = [(row['run'], row['machine'], row['step']) for row in figures.read_csv()[1:]]
    assert rows == [('tiny-off', 'mine', '0'), ('tiny-off', 'mine', '2')]
    with pytest.raises(SystemExit):  # a name stands for one run
        call(figures.main, '--add', 'out/tiny-off')
