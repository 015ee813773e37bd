"""The lesson: the pictures that wavelet_gpt.py draws of itself, and the matrix that shows who reads the future."""

import math
import os
import re
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch

import leak
import prepare_data
import train
import wavelet_gpt
from conftest import ROOT
from wavelet_gpt import GPT, GPTConfig, block_average, causal_haar, cheats, dependence, draw_dependence, future_entries, kernel_sizes

PICTURES = 'staircase', 'impulse_and_step', 'line_of_text', 'wiring', 'dependence'


@pytest.fixture
def lesson(here, monkeypatch):
    """Run it in an empty folder, with these words behind its name; the way it ends."""
    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['wavelet_gpt.py', *words])
        with pytest.raises(SystemExit) as end:
            wavelet_gpt.main()
        return end.value.code
    return run


def shape_and_colours(png):
    """Width and height of a PNG, and how many different rows of pixels it has, compressed as they are: blank has few."""
    width, height = struct.unpack('>II', png[16:24])
    pixels, at = b'', 8
    while at < len(png):
        length, kind = struct.unpack('>I4s', png[at:at + 8])
        pixels += png[at + 8:at + 8 + length] if kind == b'IDAT' else b''
        at += length + 12
    rows = zlib.decompress(pixels)
    step = len(rows) // height
    return width, height, len({rows[n:n + step] for n in range(0, len(rows), step)})


def causal_by_four(x):
    return causal_haar(x, torch.full((x.size(-1),), 4))


# --- the pictures


def test_the_command_draws_every_picture_without_a_display_and_says_what_to_see(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['wavelet_gpt.py'])
    monkeypatch.setenv('MPLBACKEND', 'TkAgg')  # which needs a display
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        wavelet_gpt.main()
    folder = here / 'out' / 'lesson'
    assert sorted(path.name for path in folder.iterdir()) == sorted(f'{name}.png' for name in PICTURES)
    for line, name in zip(capsys.readouterr().out.splitlines(), PICTURES, strict=True):
        path, sentence = line.split(': ', 1)
        assert path == os.path.join('out', 'lesson', f'{name}.png') and sentence.endswith('.')
        png = (here / path).read_bytes()
        width, height, different = shape_and_colours(png)
        assert (width, height) == (1280, 720) and different > 40 and len(png) < 150_000


def test_the_pictures_of_the_readme_are_there():
    assert {path.stem for path in (ROOT / 'assets').glob('*.png')} >= set(PICTURES)


def test_a_folder_that_cannot_be_written_and_a_wrong_word_end_in_one_sentence(here, lesson, capsys):
    (here / 'taken').write_text('a file')
    assert lesson('--out=taken') == 'could not write to taken: File exists'
    assert lesson('--ot=here') == 2 and 'unrecognized arguments: --ot=here' in capsys.readouterr().err
    assert lesson('--help') == 0 and 'out/lesson' in capsys.readouterr().out


def test_a_full_disk_leaves_the_picture_that_was_there_and_no_half_one(here, lesson, monkeypatch):
    (here / 'staircase.png').write_bytes(b'the old one')

    def full(figure, path, **_):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', full)
    assert lesson('--out=.') == 'could not write to .: No space left on device'
    assert [path.name for path in here.iterdir()] == ['staircase.png']
    assert (here / 'staircase.png').read_bytes() == b'the old one'


def test_without_matplotlib_it_says_what_to_install(here, lesson, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert lesson().endswith(': the pictures need matplotlib, pip install matplotlib')
    assert not list(here.rglob('*.png'))


def test_to_import_the_model_imports_nothing_to_draw_with():
    source = (ROOT / 'wavelet_gpt.py').read_text(encoding='utf-8')
    modules = set(re.findall(r'^(?:import|from) (\w+)', source, re.M))
    assert modules == {'math', 'dataclasses', 'torch'}


def test_a_filter_of_ones_own_is_drawn_with_its_count_in_the_title():
    figure = draw_dependence({'mine': lambda x: x.flip(1), 'causal': causal_by_four}, T=8)
    assert [axes.get_title() for axes in figure.axes] == ['mine\nfuture entries: 4', 'causal\nfuture entries: 0']


def labels(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_staircase_names_every_kernel_size_and_the_line_of_text_every_lag():
    assert labels(wavelet_gpt.draw_staircase(32, 64))[1:] == ['2', '4', '8', '16', '32', '64']
    said = labels(wavelet_gpt.draw_line_of_text())
    for k in range(5):
        assert f'f = {2 ** k}' in said and f'{(2 ** k - 1) / 2:g} steps late' in said


@pytest.mark.parametrize('f', [2, 8, 16])
def test_the_coloured_wires_lead_from_the_last_f_inputs_to_one_output_and_no_wire_from_the_future(f):
    lines = wavelet_gpt.draw_wiring(f=f, t=15).axes[0].lines
    wires = [(line.get_xdata(), line.get_ydata(), line.get_color() != '0.9') for line in lines]
    assert all(source <= target for (source, target), _, _ in wires)
    reached = {15}
    for row in range(f.bit_length() - 2, -1, -1):
        coloured = {(source, target) for (source, target), (low, _), used in wires if used and low == row}
        assert {target for _, target in coloured} == reached and len(coloured) == 2 * len(reached)
        reached = {source for source, _ in coloured}
    assert reached == set(range(16 - f, 16))


# --- the matrix


def moved(mixer, T, C):
    """Which output steps move when an input step is changed, by brute force: (T, T) of bool."""
    torch.manual_seed(1)
    x = torch.randn(1, T, C)
    out = mixer(x)
    matrix = torch.zeros(T, T, dtype=torch.bool)
    for s in range(T):
        changed = x.clone()
        changed[:, s] += 1
        matrix[:, s] = ((mixer(changed) - out).abs() > 1e-5).any(dim=2)[0]
    return matrix


def seen(matrix):
    return matrix > 1e-5 * matrix.max()


@pytest.mark.parametrize('name', cheats())
def test_the_matrix_of_a_cheat_shows_what_a_changed_input_moves(name):
    mixer = cheats()[name]
    assert torch.equal(seen(dependence(mixer)), moved(mixer, 16, 1))


def test_the_matrix_is_the_slope_entry_by_entry():
    def slopes(mixer, T, C, small=1e-2):
        x = torch.randn(1, T, C, generator=torch.Generator().manual_seed(0)).double()
        matrix = torch.zeros(T, T).double()
        for s in range(T):
            for c in range(C):
                changed = x.clone()
                changed[0, s, c] += small
                matrix[:, s] += ((mixer(changed) - mixer(x)) / small)[0].abs().sum(dim=1)
        return matrix
    for mixer in (lambda x: causal_haar(x, torch.tensor([1, 2, 8])), lambda x: block_average(x, 5) * 3 + x.cumsum(2)):
        torch.testing.assert_close(dependence(mixer, 12, 3), slopes(mixer, 12, 3).float(), rtol=1e-4, atol=1e-6)


def test_causal_haar_has_no_entry_in_the_future_to_the_last_bit():
    sizes = torch.tensor([1, 2, 4, 8, 16])
    matrix = dependence(lambda x: causal_haar(x, sizes), C=5)
    assert (matrix.triu(1) == 0).all() and (matrix.tril() == matrix).all() and (matrix[-1] > 0).all()
    assert future_entries(matrix) == 0


@pytest.mark.parametrize('f, counts', [(4, [24, 42, 98, 120, 6]), (8, [56, 84, 98, 120, 28])])
def test_every_way_to_cheat_is_counted_as_counted_by_hand(f, counts):
    # blocks of f: f (f - 1) / 2 each; ahead: f - 1 a row, fewer at the end; FNet: all 120 but where a cosine is 0;
    # the DCT: all; around the end: f - 1 in the first row, one fewer in each that follows
    assert [future_entries(dependence(mixer)) for mixer in cheats(f=f).values()] == counts


def test_a_block_of_the_gpt_is_a_mixer_too_and_causal():
    torch.manual_seed(0)
    block = GPT(GPTConfig(block_size=16, vocab_size=11, n_layer=2, n_head=2, n_embd=16)).transformer.h[0]
    matrix = dependence(block, C=16)
    assert future_entries(matrix) == 0 and (matrix + torch.ones(16, 16).triu(1) > 0).all()


def test_the_looking_ahead_transform_is_pywavelets_and_the_blocks_are_its_dwt():
    pywt = pytest.importorskip('pywt')
    x = torch.randn(1, 16, 1, generator=torch.Generator().manual_seed(0))
    ways = cheats()
    swt = pywt.swt(x.flatten().numpy(), 'haar', level=2, norm=True)[0][0]
    torch.testing.assert_close(ways['undecimated, looking ahead'](x).flatten(), torch.tensor(swt))
    low, *details = pywt.wavedec(x.flatten().numpy(), 'haar', level=2)
    blocks = pywt.waverec([low, *(0 * detail for detail in details)], 'haar')
    torch.testing.assert_close(ways['block average, repeated'](x).flatten(), torch.tensor(blocks))


@pytest.mark.parametrize('mixer, named', [(lambda x: x[:, ::2], r'\(1, 8, 1\)'), (lambda x: x.detach(), 'detach'),
                                          (lambda x: x * float('nan'), 'finite'), (lambda x: None, 'it returns NoneType')])
def test_a_mixer_that_would_only_seem_causal_is_refused(mixer, named):
    with pytest.raises(ValueError, match=named):
        dependence(mixer)


def test_a_mixer_may_write_into_its_input_and_the_dice_are_left_alone():
    def in_place(x):
        x[:, 1:] += x[:, :-1].clone()
        return x
    before = torch.get_rng_state()
    assert dependence(in_place).count_nonzero() == 31
    assert torch.equal(torch.get_rng_state(), before)


# --- too good to be true


def test_dice_are_predicted_by_the_leaking_model_alone_and_only_while_it_sees_them(here, monkeypatch):
    dice = torch.randint(2, (4000,), generator=torch.Generator().manual_seed(0)).numpy()
    prepare_data.write_dataset('dice', dict(train=dice.astype('uint8'), val=dice[::-1].astype('uint8')),
                               prepare_data.text_meta('ab', 'ab', 'dice'))
    settings = train.Settings(dataset='dice', n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=32, max_steps=60,
                              eval_interval=60, eval_windows=8, learning_rate=1e-2, device='cpu')
    in_view, step_by_step = leak.compare('causal_haar', causal_haar, settings)
    assert abs(in_view - math.log(2)) < 0.1 and abs(in_view - step_by_step) < 1e-5
    in_view, step_by_step = leak.compare('leaking', leak.leaking, settings)
    assert in_view < 0.55 and step_by_step > 0.69
    assert wavelet_gpt.causal_haar is causal_haar


def test_in_the_picture_a_spike_becomes_boxes_and_a_step_ramps_at_the_time_that_the_title_says():
    figure = wavelet_gpt.draw_impulse_and_step()
    at = int(re.search(r't = (\d+)', figure.get_suptitle())[1])
    for f, box, ramp in zip((1, 2, 4, 8), *(axes.patches for axes in figure.axes), strict=True):
        assert box.get_data().values.tolist() == [(at <= t < at + f) / f for t in range(16)]
        assert ramp.get_data().values.tolist() == [min(max(t - at + 1, 0), f) / f for t in range(16)]


def test_the_bars_of_the_picture_of_the_staircase_stand_on_the_coordinates_of_their_kernel_size():
    seen = torch.zeros(32, dtype=torch.long)
    for bar in wavelet_gpt.draw_staircase(32, 64).axes[0].patches:
        seen[bar.get_x():bar.get_x() + bar.get_width()] = 2 ** (bar.get_height() - 1)
    assert torch.equal(seen, kernel_sizes(32, 64))


def test_in_the_picture_red_is_the_future_and_purple_the_past_and_no_panel_is_empty():
    mixers = {'blind': lambda x: x.flip(1), **{f'causal {n}': lambda x: causal_haar(x, torch.tensor([2, 4])) for n in range(3)}}
    figure = draw_dependence(mixers, T=8, C=2)
    assert len(figure.axes) == 4
    for axes, mixer in zip(figure.axes, mixers.values()):
        purple, red = (np.isfinite(np.ma.filled(image.get_array(), np.nan)) for image in axes.images)
        seen = wavelet_gpt.dependence(mixer, 8, 2).numpy() > 0
        assert np.array_equal(purple, np.tril(seen)) and np.array_equal(red, np.triu(seen, 1))
        assert [image.get_cmap().name for image in axes.images] == ['Purples', 'Reds']


def test_in_the_picture_of_the_wires_what_is_hatched_begins_behind_the_output():
    shade, = wavelet_gpt.draw_wiring(t=11).axes[0].patches
    assert shade.get_x() == 11.5 and shade.get_width() == 4
