"""The lesson: its pictures, and the matrix that shows who reads the future."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'assets'))
import lesson
from lesson import cheats, dependence, draw_dependence, future_entries
from wavelet_gpt import causal_haar, kernel_sizes

PICTURES = ['staircase', 'impulse_and_step', 'line_of_text', 'wiring', 'dependence', 'model']

# --- the pictures ---

def test_the_script_draws_every_picture_and_says_what_to_see(here):
    # neither a notebook's settings nor a user's own may reach into a picture
    (here / 'matplotlibrc').write_text('savefig.format: pdf\ntext.usetex: True\n')
    backend = 'module://matplotlib_inline.backend_inline'
    command = [sys.executable, ROOT / 'assets' / 'lesson.py']
    done = subprocess.run(command, env={**os.environ, 'MPLBACKEND': backend},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path('out', 'lesson')
    assert {path.stem for path in folder.iterdir()} == set(PICTURES)
    for line, name in zip(done.stdout.splitlines(), PICTURES, strict=True):
        path, sentence = line.split(': ', 1)
        assert path == str(folder / f'{name}.png') and sentence.endswith('.')
        png = Path(path).read_bytes()
        size = int.from_bytes(png[16:20], 'big'), int.from_bytes(png[20:24], 'big')
        assert png.startswith(b'\x89PNG') and size == (1280, 720) and 20_000 < len(png) < 150_000

@pytest.mark.parametrize('folder', ['.', 'assets'])
def test_a_notebook_shows_a_picture_at_the_end_of_its_cells(folder, monkeypatch):
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if path != str(ROOT)])
    names = {'__name__': '__main__', 'get_ipython': None}  # as in a notebook, without __file__
    shown = []
    source = Path(lesson.__file__).read_text(encoding='utf-8')
    for cell in re.split('^# %%', source, flags=re.M)[1:]:
        lines, _, last = ('#' + cell).rstrip().rpartition('\n\n')
        exec(lines, names)
        if last.startswith('NOTEBOOK and '):
            shown.append(last)
            assert eval(last, names).axes
        else:
            exec(last, names)
    assert shown == [f'NOTEBOOK and draw_{name}()' for name in PICTURES]

def test_the_pictures_of_the_readme_are_there():
    assert {path.stem for path in (ROOT / 'assets').glob('*.png')} >= set(PICTURES)

def test_a_filter_of_ones_own_is_drawn_with_its_count_in_the_title():
    mixers = {'mine': lambda x: x.flip(1), 'causal': lambda x: causal_haar(x, [4, 8])}
    titles = [axes.get_title() for axes in draw_dependence(mixers, T=8, C=2).axes]
    assert titles == ['mine\nfuture entries: 4', 'causal\nfuture entries: 0']

def test_the_bars_of_the_staircase_stand_on_the_coordinates_of_their_window():
    seen = [0] * 32
    for bar in lesson.draw_staircase(32, 64).axes[0].patches:
        for i in range(int(bar.get_width())):
            seen[int(bar.get_x()) + i] = 2 ** (bar.get_height() - 1)
    assert seen == kernel_sizes(32, 64)

def test_the_line_of_text_names_every_lag():
    said = [text.get_text() for text in lesson.draw_line_of_text().axes[0].texts]
    for f in (1, 2, 4, 8, 16):
        assert f'f = {f}' in said and f'{(f - 1) / 2:g} steps late' in said

@pytest.mark.parametrize('f', [2, 8, 16])
def test_coloured_wires_lead_from_the_last_f_inputs_to_one_output(f):
    lines = lesson.draw_wiring(f=f, t=15).axes[0].lines
    reached = {15}
    for row in reversed(range(f.bit_length() - 1)):
        wires = [line.get_xdata() for line in lines
                 if line.get_color() != '0.9' and line.get_ydata()[0] == row]
        assert {target for _, target in wires} == reached
        reached = {source for source, _ in wires}
    assert reached == set(range(16 - f, 16))

# --- the matrix ---

@pytest.mark.parametrize('mixer', cheats().values(), ids=cheats())
def test_the_matrix_of_a_cheat_shows_what_a_changed_input_moves(mixer):
    x = torch.randn(1, 16, 1)
    moved = torch.zeros(16, 16)
    for s in range(16):
        changed = x.clone()
        changed[:, s] += 1
        moved[:, s] = (mixer(changed) - mixer(x)).abs().flatten()
    torch.testing.assert_close(dependence(mixer), moved, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('f, counts', [(4, [24, 42, 98, 120, 6]), (8, [56, 84, 98, 120, 28])])
def test_every_cheat_has_the_future_entries_that_are_known(f, counts):
    assert [future_entries(dependence(mixer)) for mixer in cheats(f=f).values()] == counts

@pytest.mark.parametrize('mixer', [lambda x: x * 0, lambda x: x * torch.nan])
def test_a_mixer_that_would_only_seem_causal_is_refused(mixer):
    with pytest.raises(AssertionError):
        dependence(mixer)

def test_causal_haar_has_no_future_entry_to_the_last_bit():
    matrix = dependence(lambda x: causal_haar(x, [1, 2, 4, 8, 16]), C=5)
    assert future_entries(matrix) == 0 and torch.equal(matrix > 0, torch.ones(16, 16).tril() > 0)
