import io
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
from prepare_data import encode_notes, write_dataset
from wavelet_gpt import GPT, GPTConfig

TUNE = [(0.0, 0.5, 60, 61), (0.5, 0.7, 64, 61), (0.5, 1.0, 67, 101), (1.0, 1.2, 60, 101)]

pytestmark = pytest.mark.usefixtures('here')  # an empty current directory

def save_run(modality, vocab_size, **meta):
    torch.manual_seed(0)
    config = dict(block_size=16, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16)
    meta.update(modality=modality, vocab_size=vocab_size)
    path = Path('out/tiny/best.pt')
    path.parent.mkdir(parents=True)
    torch.save(dict(model=GPT(GPTConfig(**config)).state_dict(), config=config, meta=meta,
                    settings=dict(dataset='tiny'), step=1), path)
    return path

def refusal(*words):
    with pytest.raises(SystemExit) as end:
        sample.main(words)
    assert '\n' not in str(end.value)
    return str(end.value)

def test_any_tokens_decode_to_notes_that_survive_encoding():
    rng = np.random.default_rng(0)
    for ids in [388, [60, 61, 188, 189, 256, 265, 356, 387]] * 100:
        tokens = rng.choice(ids, rng.integers(200))
        notes = sample.decode_notes(tokens)
        assert len(notes) == (tokens < 128).sum()
        assert sample.decode_notes(encode_notes(notes)) == notes

@pytest.mark.parametrize('notes', [[], TUNE, [(0, 300, 21, 1), (20000, 20001, 108, 127)]])
def test_mido_finds_the_notes_that_are_written(notes):
    mido = pytest.importorskip('mido')
    file = mido.MidiFile(file=io.BytesIO(sample.write_midi(notes)))
    now, found, sounding = 0, [], {}
    for message in file:
        now += message.time
        if message.type == 'note_on':
            sounding[message.note] = now, message.velocity
        elif message.type == 'note_off':
            start, velocity = sounding.pop(message.note)
            found.append((round(start, 3), round(now, 3), message.note, velocity))
    assert file.type == 0 and sorted(found) == notes

def test_mu_law_follows_its_formula_and_a_wav_file_holds_the_samples():
    y = np.arange(256) / 128 - 1
    expected = np.sign(y) * (256 ** np.abs(y) - 1) / 255
    np.testing.assert_allclose(sample.mu_law_decode(np.arange(256)), expected, atol=1e-6)
    with wave.open(io.BytesIO(sample.write_wav([0, 0.5, -1, 7], 8000))) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 4)
        assert np.frombuffer(file.readframes(4), '<i2').tolist() == [0, 16384, -32768, 32767]

def test_a_picture_is_a_png_file_whatever_the_surroundings_say_and_ends_no_run():
    backend = 'module://matplotlib_inline.backend_inline'  # a notebook's, and missing here
    Path('matplotlibrc').write_text('text.usetex: True\nsavefig.format: pdf\n')
    code = ('import sample, numpy\n'
            'save = lambda path, draw: sample.save_picture(sample.Path(path), draw)\n'
            'save("a", lambda figure: sample.draw_sound(figure, numpy.zeros(50), 8000))\n'
            'save("b", lambda figure: sample.draw_piano_roll(figure, []))\n'
            'save("c", lambda figure: 1 / 0)\n')
    environment = dict(os.environ, MPLBACKEND=backend, PYTHONPATH=os.path.dirname(sample.__file__))
    done = subprocess.run([sys.executable, '-c', code], stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 0 and done.stderr.startswith(b'c ') and not Path('c').exists()
    assert Path('a').read_bytes()[:4] == Path('b').read_bytes()[:4] == b'\x89PNG'

class Hostile:
    __reduce__ = lambda self: (os.mkdir, ('ran',))

@pytest.mark.parametrize('damage', ['code', 'truncated', 'another model'])
def test_a_checkpoint_that_does_not_load_is_named_and_runs_no_code(damage):
    path = save_run('music', 388)
    if damage == 'truncated':
        path.write_bytes(path.read_bytes()[:-100])
    else:
        torch.save(Hostile() if damage == 'code' else dict(torch.load(path), model={}), path)
    assert str(path) in refusal() and not Path('ran').exists()

def test_text_is_the_same_in_print_and_in_a_file_and_by_the_same_seed(monkeypatch):
    save_run('text', 5, characters='\rab\x1bé')
    words = ['--prompt=ab\ra', '--num_tokens=60', '--out=a.txt']
    console = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', console)
    sample.main(words)
    written = Path('a.txt').read_bytes().decode()
    assert written[:4] == 'ab\ra' and len(written) == 64
    printed = console.buffer.getvalue().decode()
    assert printed.splitlines() == written.replace('\x1b', '\ufffd').splitlines()
    sample.main([*words, '--run=out/tiny/'])
    assert Path('a.txt').read_bytes().decode() == written

def test_a_line_of_windows_is_printed_as_one_line(capsys):
    save_run('text', 4, characters='\r\nab')
    sample.main(['--prompt=a\r\nb\r\n', '--num_tokens=1'])
    assert capsys.readouterr().out.startswith('a\nb\n')

@pytest.mark.parametrize('error', [KeyboardInterrupt, BrokenPipeError])
def test_what_is_there_when_the_run_is_stopped_is_written(error, monkeypatch, capfd):
    save_run('text', 5, characters='\nabcd')

    def stream(*_):
        yield from torch.tensor([[1], [2], [3]])
        raise error

    monkeypatch.setattr(GPT, 'stream', stream)
    sample.main(['--out=a.txt'])
    assert Path('a.txt').read_text() == 'abc' and 'a.txt' in capfd.readouterr().err

def test_characters_that_a_run_never_saw_are_named_once_and_the_alphabet_is_not():
    save_run('text', 5000, characters=''.join(map(chr, range(5000, 10000))))
    sentence = refusal('--prompt=u\u0308u\u0308')
    assert sentence.count('U+0308') == sentence.count('U+0075') == 1
    assert chr(5009) not in sentence

def test_no_folder_and_no_device_is_replaced_by_a_sample():
    save_run('text', 3, characters='abc')
    Path('folder').mkdir()
    os.mkfifo('device')
    for name in 'folder', 'device':
        refusal(f'--out={name}')
    assert Path('folder').is_dir() and Path('device').is_fifo()

def test_a_prompt_for_a_model_of_pictures_is_refused():
    save_run('pixels', 266, labels=list('0123456789'))
    assert 'cat.png' in refusal('--prompt=cat.png')

def test_tokens_of_a_readers_own_kind_are_refused_in_a_sentence():
    save_run('dice', 6)
    assert 'dice' in refusal()

@pytest.mark.parametrize('modality, vocab_size, suffix, tokens, prompt', [
    ('music', 388, '.mid', sample.music_tokens, sample.write_midi(TUNE)),
    ('audio', 256, '.wav', sample.audio_tokens, sample.write_wav(np.sin(np.arange(3000)), 16000))])
def test_music_and_sound_go_on_from_a_file(modality, vocab_size, suffix, tokens, prompt):
    assert 'python train.py' in refusal()
    save_run(modality, vocab_size, sample_rate=16000)
    Path('prompt').write_bytes(prompt)
    sample.main(['--prompt=prompt', '--num_tokens=40'])
    given = tokens(prompt)[:-3].tolist()  # the end of the last note may come later
    assert tokens(Path('out/tiny/sample' + suffix).read_bytes())[:len(given)].tolist() == given
    assert Path('out/tiny/sample.png').read_bytes().startswith(b'\x89PNG')
    Path('silent').write_bytes(sample.write_midi([]) if suffix == '.mid' else b'RIFF')
    for wrong in '--prompt=none', '--prompt=silent', '--out=a.mp3', '--out=none/a' + suffix:
        assert wrong in refusal(wrong)
    Path('prompt').write_bytes(prompt[:-1])
    with pytest.warns(UserWarning):
        sample.main(['--prompt=prompt', '--num_tokens=1'])

@pytest.mark.parametrize('splits', [['train', 'val'], ['train', 'val', 'test']])
def test_the_right_label_stands_beside_the_likeliest_three(splits, capsys):
    meta = dict(modality='listops', vocab_size=25, labels=list('0123456789'), width=17)
    save_run(**meta, splits=dict.fromkeys(splits))
    rows = np.array([[0, 7, 8, 4, 18] + [0] * 12, [9, 19] + [0] * 15])
    others = dict.fromkeys(splits[:-1], rows[::-1])
    write_dataset('tiny', {**others, splits[-1]: rows}, meta)
    sample.main([])
    sample.main(['--prompt=[MAX 2 [MIN 4 7 1 ] 0 ]'])
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [(line.count('%'), line[-2]) for line in lines] == [(3, '3'), (3, '4'), (3, '2')]
    for wrong in '[MAX 2', '7]', '[MAX ' + '2 ' * 15 + ']':
        assert wrong in refusal('--prompt=' + wrong)

@pytest.mark.parametrize('word', ['--num_tokens=0', '--top_k=0', '--temperature=-1',
                                  '--temperature=nan'])
def test_a_number_that_makes_no_sense_is_refused(word):
    save_run('text', 5, characters='\nabcd')
    with pytest.raises(SystemExit) as end:
        sample.main([word])
    assert end.value.code == 2
