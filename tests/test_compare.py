"""The comparison of runs, on logs written by hand, whose answers can be worked out on paper."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import train
from wavelet_gpt import GPT, GPTConfig

STEPS = dict(max_steps=300, eval_interval=100)


def finished(run, losses, seconds=None, parameters=1000, checksum='a', steps=(0, 100, 200, 300), accuracy=None, machine='cpu', **settings):
    """A finished run in out/: losses at those steps, one second a step unless told."""
    folder = Path('out') / run
    folder.mkdir(parents=True)
    rows = zip(steps, losses, seconds or steps, strict=True)
    log = ['step,train_loss,val_loss,tokens_per_s,seconds'] + [f'{step},9,{loss},100,{time}' for step, loss, time in rows]
    (folder / 'log.csv').write_text('\n'.join(log) + '\n')
    result = dict(settings=asdict(train.Settings(**STEPS | settings)), parameters=parameters, accuracy=accuracy or {},
                  checksums=dict(train=checksum, val='v'), loss_by_position=[[1, 3.0], [2, 2.5], [256, 2.0]], machine=machine)
    (folder / 'result.json').write_text(json.dumps(result))


def table(capsys, **settings):
    """What compare prints: {label: [the words of its line behind the label]}, and all of it."""
    train.compare(train.Settings(**STEPS | settings))
    said = capsys.readouterr().out
    lines = [line.split('  ', 1) for line in said.splitlines() if '  ' in line.strip() and not line.startswith(' ')]
    return {name: rest.split() for name, rest in lines}, said


def test_a_crossing_is_interpolated_between_two_rows():
    assert train.crossing([0, 100, 200], [5.0, 3.0, 2.0], 2.25) == 175
    assert train.crossing([0, 100, 200], [5.0, 3.0, 2.0], 3.0) == 100
    assert train.crossing([0, 100, 200], [5.0, 3.0, 2.0], 6.0) == 0
    assert train.crossing([0, 100, 200], [5.0, 2.0, 3.0], 2.5) == pytest.approx(500 / 6)  # the first time counts


def test_a_loss_that_is_never_reached_is_said_to_be_never_reached(here, capsys):
    assert train.crossing([0, 100, 200], [5.0, 3.0, 2.0], 1.9) is None
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 4.5, 4, 3.5])
    rows, said = table(capsys)
    assert rows['on'] == ['1', '3.500', '3.500', 'never', '+0', '1.00']
    assert len({len(line) for line in said.splitlines() if re.match(r'(on|off)\b', line)}) == 1  # so the columns stand in line


def test_the_table_has_the_numbers_that_pencil_and_paper_give(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 3, 1, 1.5], seconds=[0, 120, 240, 360], parameters=1010)  # 2 is passed at step 150, after 180 s
    rows, said = table(capsys)
    assert rows['on'] == '1 1.500 1.000 150 steps, 180 s 2.00 1.67 +10 1.20'.split()
    assert rows['off'] == '1 2.000 2.000 300 steps, 300 s 1.00 1.00 +0 1.00'.split()
    assert list(rows)[-2:] == ['on', 'off']  # the best first


def test_a_plain_run_that_overfits_is_still_equal_to_itself(here, capsys):
    finished('off', [5, 3, 2, 4], wavelet='off')
    assert table(capsys)[0]['off'] == '1 4.000 2.000 50 steps, 50 s 1.00 1.00 +0 1.00'.split()


def test_runs_that_differ_in_the_seed_alone_are_averaged_and_their_range_is_shown(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 3, 2, 1.4])
    finished('on-2', [5, 3, 1, 1.0], seed=1)
    finished('on-3', [5, 3, 1, 1.2], seed=2)
    assert table(capsys)[0]['on'][:5] == ['3', '1.200', '(1.000-1.400)', '1.200', '160']  # the mean is 1.333 at step 200


def test_times_and_accuracies_of_several_seeds_are_averaged(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off', accuracy=dict(val=0.9, test=0.2))
    for seed, (factor, share) in enumerate([(1, 0.1), (2, 0.3), (6, 0.35)]):
        finished(f'on-{seed}', [5, 3, 1, 1], seconds=[0, 100 * factor, 200 * factor, 300 * factor], seed=seed, accuracy=dict(test=share))
    rows = table(capsys)[0]
    assert rows['on'] == '3 1.000 (1.000-1.000) 1.000 150 steps, 450 s 2.00 0.67 +0 3.00 25.0% right (10.0%-35.0%)'.split()
    assert rows['off'][-3:] == ['20.0%', 'right', '(20.0%-20.0%)']


def test_times_of_several_machines_are_not_compared(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 3, 1, 1], seconds=[0, 1, 2, 3], machine='cuda')
    rows, said = table(capsys)
    assert rows['on'] == '1 1.000 1.000 150 steps, nan s 2.00 nan +0 nan'.split()
    assert re.search('times do not compare:\n  cpu\n  cuda\n', said)


def test_two_runs_with_the_same_seed_are_no_second_measurement(here, capsys):
    finished('on', [5, 3, 2, 1])
    finished('on-2', [5, 3, 2, 1])
    assert table(capsys)[0]['on'][0] == '1'


def test_seeds_with_other_rows_or_positions_are_averaged_over_those_that_both_have(here, capsys):
    finished('off', [5, 4, 2], steps=(0, 100, 300), wavelet='off')
    finished('off-2', [5, 3.5, 3, 2], seed=1, steps=(0, 50, 200, 300), wavelet='off')
    fewer = Path('out/off-2/result.json')
    fewer.write_text(fewer.read_text().replace('[2, 2.5], ', ''))
    runs = train.finished_runs(train.Settings(**STEPS))['off'].values()
    assert train.averaged(list(runs))['position'] == [1, 256]
    assert table(capsys)[0]['off'] == '2 2.000 (2.000-2.000) 2.000 300 steps, 300 s 1.00 1.00 +0 1.00'.split()


def test_an_unfinished_or_damaged_run_is_left_out_and_named(here, capsys):
    finished('on', [5, 3, 2, 1])
    finished('unfinished', [5, 3, 2, 1], seed=1)
    Path('out/unfinished/result.json').unlink()
    finished('short', [5, 3, 2], steps=(0, 100, 200), seed=2)
    finished('cut', [5, 3, 2, 1], seed=3)
    Path('out/cut/log.csv').write_text('step,train_loss,val_loss,tokens_per_s,seconds\n0,9,5,10')
    finished('edited', [5, 3, 2, 1], seed=4)
    Path('out/edited/result.json').write_text('{"settings": {"magic": 1}}')
    finished('list', [5, 3, 2, 1], seed=5)
    Path('out/list/result.json').write_text('[]')
    finished('bins', [5, 3, 2, 1], seed=6)
    Path('out/bins/result.json').write_text(Path('out/bins/result.json').read_text().replace('3.0', '"x"'))
    finished('endless', [5, 3, 2, 1], steps=(0, 'inf', 200, 300), seconds=(0, 1, 2, 3), seed=7)
    finished('deep', [5, 3, 2, 1], seed=8)
    Path('out/deep/result.json').write_text('[' * 200_000)
    finished('wide', [5, 3, 2, '1' * 200_000], seed=9)
    finished('late', [1], steps=(300,), seed=10)
    finished('seeds', [5, 3, 2, 1], seed=[1], wavelet_max_level=3)
    finished('number', [5, 3, 2, 1], checksum='b')
    Path('out/number/result.json').write_text(Path('out/number/result.json').read_text().replace('"on"', '5'))
    rows, said = table(capsys)
    assert rows['on'][:2] == ['1', '1.000'] and len(rows) == 1 and 'other contents' not in said
    for name, why in dict(endless='damaged', unfinished='not finished', short='no row of step 300', cut='damaged', edited='magic', list='damaged',
                          bins='damaged', deep='damaged', wide='damaged', late='no row of step 0', seeds='damaged', number='damaged').items():
        assert any(str(Path('out') / name) in line and why in line for line in said.splitlines()), name


def test_damaged_runs_alone_are_no_finished_run(here, capsys):
    finished('number', [5, 3, 2, 1])
    Path('out/number/result.json').write_text(Path('out/number/result.json').read_text().replace('"on"', '5'))
    with pytest.raises(SystemExit, match='no finished run with --dataset=stdlib'):
        table(capsys)


def test_only_runs_that_were_measured_alike_are_compared(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('longer', [5, 4, 3, 2], steps=(0, 100, 200, 600), max_steps=600)
    finished('english', [5, 4, 3, 2], dataset='english')
    finished('windows', [5, 4, 3, 2], eval_windows=64)
    finished('context', [5, 4, 3, 2], block_size=512)
    rows, said = table(capsys)
    assert 'on' not in rows and 'off' in rows
    assert 'on' in table(capsys, max_steps=600)[0]


def test_a_label_says_in_what_a_run_differs_from_the_one_at_hand():
    usual = train.Settings()
    assert train.label(usual, usual) == 'on'
    assert train.label(train.Settings(seed=3, run='x', device='cpu', dtype='float32', eval_interval=7), usual) == 'on'
    assert train.label(train.Settings(wavelet='off', n_layer=8), usual) == 'off, n_layer=8'
    assert train.label(train.Settings(wavelet='off', n_layer=8), train.Settings(n_layer=8, wavelet_max_level=3)) == 'off'
    assert train.label(train.Settings(wavelet='off', wavelet_max_level=3), usual) == 'off'  # there is no level to change
    levels = train.Settings(wavelet_max_level=3, wavelet_fraction=0.25)
    assert train.label(levels, usual) == train.label(levels, levels) == 'on, fraction=0.25, max_level=3'
    assert train.label(train.Settings(wavelet_max_level=8), usual) == 'on'  # 2^8 = T: what it is if left open
    assert train.label(train.Settings(wavelet_max_level=8, block_size=512), usual) == 'on, max_level=8'


def test_the_loss_is_drawn_against_the_longest_window_once_three_runs_differ_in_it(here, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(train, 'save_figure', lambda figure, path: drawn.append((path.name, figure)))
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 3, 1, 1.5])
    finished('one', [5, 3, 1, 1.7], wavelet_max_level=1)
    finished('short', [5, 3, 1, 0.1], wavelet_min_level=2, wavelet_max_level=3)  # differs in something else, too
    assert '-levels.png' not in table(capsys)[1]
    finished('three', [5, 3, 1, 1.2], wavelet_max_level=3)
    finished('three-1', [5, 3, 1, 1.0], wavelet_max_level=3, seed=1)
    assert 'out/stdlib-levels.png' in table(capsys)[1]
    name, figure = drawn[-1]
    [line] = figure.axes[0].lines
    assert name == 'stdlib-levels.png' and line.get_xydata().tolist() == [[0, 2], [1, 1.7], [3, 1.1], [8, 1.5]]


def test_the_picture_marks_where_on_has_the_final_loss_of_plain_and_says_how_much_sooner(here, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(train, 'save_figure', lambda figure, path: drawn.update({path.name: figure}))
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 3, 1, 1.5])
    finished('on-2', [5, 3, 1, 1.5], seed=1)
    table(capsys)
    left = drawn['stdlib.png'].axes[0]
    assert left.get_title() == "stdlib, laptop size, T = 256, 300 steps\non has plain's final loss after 2.00 times fewer steps"
    assert {line.get_label(): line.get_ydata()[-1] for line in left.lines if line.get_label()[0] != '_'} == {
        '1.500  on': 1.5, '2.000  off': 2}
    [mark] = [line for line in left.lines if line.get_linestyle() == ':']
    assert mark.get_xydata().tolist() == [[150, 2], [300, 2]]


def test_the_picture_claims_no_saving_where_plain_was_sooner(here, capsys, drawn):
    finished('off', [5, 2, 2.5, 3], wavelet='off')
    finished('on', [5, 4, 3.1, 2.9])
    table(capsys)
    assert 'fewer' not in drawn[0].axes[0].get_title()


def test_the_picture_of_the_learned_kernels_has_ticks_all_over_their_windows(here, drawn):
    config = GPTConfig(block_size=32, n_layer=2, n_embd=16, wavelet='learnable', wavelet_min_level=4)
    train.draw_kernels(here, GPT(config))
    assert [list(panel.get_xticks()) for panel in drawn[0].axes[:2]] == [[0, 1, 2, 4, 8], [0, 1, 2, 4, 8, 16]]


def test_without_matplotlib_a_picture_is_one_sentence_that_says_how_to_get_it(here, monkeypatch):
    finished('on', [5, 3, 1, 1.5])
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(SystemExit, match='matplotlib.*: pip install -r requirements.txt, then'):
        train.compare(train.Settings(**STEPS))


def test_runs_on_other_contents_of_the_same_name_are_left_out(here, capsys):
    finished('off', [5, 4, 3, 2], wavelet='off')
    finished('on', [5, 4, 3, 2], checksum='b')
    newest = max(Path('out').glob('*/log.csv'), key=lambda path: path.stat().st_mtime).parent.name
    rows, said = table(capsys)
    assert [name for name in ('on', 'off') if name in rows] == [newest] and 'other contents of data/stdlib' in said


def test_without_a_plain_run_the_table_says_how_to_make_one(here, capsys):
    finished('on', [5, 3, 2, 1])
    rows, said = table(capsys)
    assert rows['on'] == ['1', '1.000', '1.000'] and 'train one with --wavelet=off\n' in said
    finished('off', [5, 4, 3, 2], wavelet='off', n_layer=2)
    assert 'or give --compare the options that stand behind "off" above' in table(capsys)[1]
    assert 'no plain run' not in table(capsys, n_layer=2)[1]


def test_comparing_nothing_is_one_sentence(here):
    assert any('--compare looks at all' in problem for problem in train.Settings(compare=True, run='mine').problems())
    with pytest.raises(SystemExit, match='no finished run with --dataset=stdlib, --size=laptop.*--max_steps=300'):
        train.compare(train.Settings(**STEPS))


@pytest.fixture
def tiny(here):
    (here / 'tiny.txt').write_text('the quick brown fox jumps over the lazy dog\n' * 200)
    prepare_data.main(['--input', 'tiny.txt', '--name=tiny'])
    return dict(dataset='tiny', n_layer=3, n_head=2, n_embd=16, block_size=24, batch_size=4, max_steps=4, eval_interval=2,
                eval_windows=8, device='cpu')


def test_a_run_ends_with_the_table_and_the_pictures_and_compare_repeats_it(tiny, capsys, monkeypatch):
    train.train(train.Settings(wavelet='off', **tiny))
    capsys.readouterr()
    train.main(train.Settings(wavelet='learnable', **tiny))
    said = capsys.readouterr().out
    for picture in Path('out/tiny.png'), Path('out/tiny-learnable/kernels.png'):
        assert picture.read_bytes().startswith(b'\x89PNG')
    monkeypatch.setattr(train, 'draw_comparison', lambda *_: None)
    train.main(train.Settings(compare=True, **tiny))
    again = capsys.readouterr().out
    assert again.strip() and said.endswith(again)
    added = 2 * sum(train.model_config(train.Settings(**tiny), 9).kernel_sizes()[8:].tolist())
    assert f'+{added:,}' in again  # a kernel of length f(i) for each averaged coordinate, at two places


def test_resuming_a_finished_run_only_writes_its_end_again(tiny):
    train.train(train.Settings(**tiny))
    before = Path('out/tiny-on/result.json').read_bytes()
    Path('out/tiny-on/result.json').unlink()
    train.train(train.Settings(dataset='tiny', resume=True))
    after = Path('out/tiny-on/result.json').read_bytes()
    assert json.loads(after)['loss_by_position'] == json.loads(before)['loss_by_position']


def test_the_loss_by_position_is_that_of_a_plain_loop(tiny):
    model, meta, folder, rows = train.train(train.Settings(**tiny))
    result = json.loads((folder / 'result.json').read_text())
    tokens = torch.from_numpy(np.fromfile('data/tiny/val.bin', np.uint8)).long()
    starts = np.linspace(0, len(tokens) - 25, 8).astype(int)
    losses = np.array([[-model(tokens[None, s:s + n])[0][0, -1].log_softmax(0)[tokens[s + n]].item() for n in range(1, 25)]
                       for s in starts])
    expected = [[1, losses[:, 0].mean()], [2, losses[:, 1].mean()], [4, losses[:, 2:4].mean()], [8, losses[:, 4:8].mean()],
                [16, losses[:, 8:16].mean()], [24, losses[:, 16:].mean()]]
    assert np.allclose(result['loss_by_position'], expected, atol=1e-5)
    weights = [1, 1, 2, 4, 8, 8]
    assert np.average([loss for _, loss in expected], weights=weights) == pytest.approx(rows[-1]['val_loss'], abs=1e-5)
