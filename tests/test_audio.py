"""WAV files to samples, other sample rates, mu-law."""

import io
import random
import struct
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from prepare_data import audio_tokens, mu_law_encode, music_tokens, read_wav, resample
from sample import mu_law_decode, write_wav
from test_data import prepared
from test_music import NOTE, OTHER, midi

FOUR = struct.pack('<4h', 0, 16384, -32768, 32767)

def chunk(name, content, size=None):
    header = struct.pack('<4sI', name, len(content) if size is None else size)
    return header + content + b'\0' * (len(content) % 2)

def wav(content, kind=1, channels=1, rate=16000, align=2, bits=16, size=None, extensible=False):
    first = 0xFFFE if extensible else kind
    fmt = struct.pack('<HHIIHH', first, channels, rate, rate * align, align, bits)
    if extensible:
        fmt += struct.pack('<HHIH', 22, bits, 0, kind) + b'\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71'
    body = b'WAVE' + chunk(b'LIST', b'abc') + chunk(b'fmt ', fmt) + chunk(b'data', content, size)
    return struct.pack('<4sI', b'RIFF', len(body)) + body

@pytest.mark.parametrize('bits', [8, 12, 16, 20, 24, 32])
@pytest.mark.parametrize('channels, extensible', [(1, False), (2, True), (6, False)])
def test_every_width_and_number_of_channels_is_read_within_one_step(channels, bits, extensible):
    width = (bits + 7) // 8
    full, spare = 2 ** (bits - 1), 8 * width - bits  # what is spared are the low bits
    frames = np.random.default_rng(bits).integers(-full, full, (50, channels))
    frames[:2] = [[-full], [full - 1]]
    stored = [(int(value) << spare) + 128 * (width == 1) for value in frames.ravel()]
    content = b''.join(value.to_bytes(width, 'little', signed=width > 1) for value in stored)
    samples, _ = read_wav(wav(content, channels=channels, bits=bits, extensible=extensible))
    assert samples.dtype == np.float32 and samples.shape == (50,)
    assert np.abs(samples - frames.mean(axis=1) / full).max() < 2e-7 and samples[0] == -1

def test_floating_point_is_clipped_and_no_number_is_silence():
    values = np.array([0.5, -0.25, 7, np.nan, np.inf, -np.inf], np.float32)
    samples, _ = read_wav(wav(values.tobytes(), kind=3, bits=32))
    assert samples.tolist() == [0.5, -0.25, 1, 0, 1, -1] and samples.dtype == np.float32

@pytest.mark.parametrize('data, n', [
    (wav(FOUR, align=1), 4), (wav(FOUR, size=52), 4), (wav(FOUR, size=0x3FFFFFFF), 4),
    (wav(FOUR, size=0), 4), (wav(FOUR)[:-1], 3), (wav(FOUR) + chunk(b'LIST', b'abc'), 4)],
    ids=['align', 'a little', 'far', 'zero', 'cut', 'more'])
def test_what_is_there_counts_whatever_the_header_says(data, n):
    with warnings.catch_warnings(record=True) as damages:
        assert read_wav(data)[0].tolist() == [0, 0.5, -1, 32767 / 32768][:n]
    assert len(damages) == (len(data) < len(wav(FOUR)))

@pytest.mark.parametrize('data', [
    b'', b'ID3\x04' + bytes(99), wav(FOUR)[:40], wav(FOUR, kind=7, bits=8), wav(FOUR, channels=0),
    wav(FOUR, bits=0), wav(FOUR, bits=40), wav(FOUR, kind=3), wav(FOUR, rate=99)],
    ids=range(9))
def test_what_cannot_be_read_is_refused(data):
    with pytest.raises(ValueError):
        read_wav(data)

@pytest.mark.parametrize('encode, whole', [
    (music_tokens, midi('00 FF5103 07A120 00 B0407F' + NOTE + '00 F0 02 01F7 64 C001', OTHER)),
    (music_tokens, midi(random.Random(1).randbytes(200).hex(), OTHER)),
    (audio_tokens, wav(bytes(range(240)), channels=2)),
    (audio_tokens, wav(bytes(range(240)), kind=3, bits=32, extensible=True))],
    ids=['notes', 'noise', '8 bits', 'floats'])
def test_two_thousand_mutated_files_give_tokens_or_a_value_error(encode, whole):
    rng, results = random.Random(0), Counter()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(data))
            data[place:place + rng.randrange(3)] = rng.choice([b'', b'\xFF', rng.randbytes(3)])
        try:
            with warnings.catch_warnings(record=True):
                results['read'] += encode(bytes(data)).max(initial=0) < 388
        except ValueError:
            results['refused'] += 1
    assert sum(results.values()) == 500 and min(results.values()) > 10, results

@pytest.mark.parametrize('rate', [44100, 48000, 44101, 8000, 400, 96000])
def test_a_sine_keeps_its_amplitude_and_an_alias_is_gone(rate):
    def sine(frequency, rate):
        return np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate + 0.3).astype(np.float32)
    low = min(rate, 16000)
    for frequency, there in ((0.1 * low, 1), (0.45 * low, 1), (0.5 * low, 0), (0.6 * low, 0)):
        if frequency < rate / 2:
            error = resample(sine(frequency, rate), rate, 16000) - there * sine(frequency, 16000)
            assert np.abs(error[8000:-8000]).max() < 0.01 and error.dtype == np.float32

def test_silence_stands_before_and_behind_and_lengths_are_as_stated():
    for n in (0, 1, 999, 44100, 88199):
        out = resample(np.ones(n, np.float32), 44100, 16000)
        assert out.shape == (round(n * 16000 / 44100),) and np.abs(out - 1).max(initial=0) < 0.5
    click = np.zeros(44100, np.float32)
    click[-50:] = 1  # the end does not come in at the start
    assert np.abs(resample(click, 44100, 16000)[:1000]).max() < 1e-4

def test_mu_law_is_off_by_half_a_step_and_every_level_comes_back():
    quiet = np.geomspace(1e-9, 1, 50_001)
    samples = np.concatenate([np.linspace(-1, 1, 100_001), quiet, -quiet])
    companded = np.sign(samples) * np.log(1 + 255 * np.abs(samples)) / np.log(256)
    error, top = np.abs(mu_law_encode(samples) / 128 - 1 - companded), companded > 127.5 / 128
    assert 0.99 / 256 < error[~top].max() < 1.001 / 256 and error[top].max() < 1.001 / 128
    assert (mu_law_encode(mu_law_decode(np.arange(256))) == np.arange(256)).all()
    assert mu_law_encode([[0, -0.0, 1, -1, 7, -np.inf]]).tolist() == [[128, 128, 255, 0, 255, 0]]

def sound(seed):
    return write_wav(0.5 * np.sin(2 * np.pi * (200 + 50 * seed) * np.arange(160) / 16000), 16000)

def test_youtubemix_is_split_as_sashimi_does_unless_it_is_damaged(here, server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        for n in random.Random(0).sample(range(241), 241):
            file.writestr(f'youtube_mix/out{n:03}.wav', sound(n % 7))
        file.writestr('youtube_mix/../../evil.wav', sound(1))
    data = archive.getvalue()
    server.offer('YOUTUBEMIX', data[:99] + b'!' + data[100:], 'a.zip')
    del prepare_data.YOUTUBEMIX['sha256']  # nobody knows it
    with pytest.raises(SystemExit, match='a.zip'):
        prepare_data.main(['youtubemix'])
    Path('data/youtubemix/a.zip').unlink()
    server.content = data
    prepare_data.main(['youtubemix'])
    meta, splits = prepared('youtubemix')
    assert meta['sample_rate'] == 16000 and meta['vocab_size'] == 256 and len(meta['sha256']) == 64
    for split, numbers in dict(train=range(212), val=range(212, 226), test=range(226, 241)).items():
        assert splits[split].tolist() == [t for n in numbers for t in audio_tokens(sound(n % 7))]
