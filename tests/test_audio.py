import io
import random
import struct
import time
import tracemalloc
import warnings
import wave

import numpy as np
import pytest

import sample
from prepare_data import mu_law_encode, read_wav, resample
from sample import draw_audio, mu_law_decode, write_wav


# ---------------------------------------------------------------- reading

def chunk(name, content):
    return struct.pack('<4sI', name, len(content)) + content + b'\0' * (len(content) % 2)


def fmt(kind=1, channels=1, rate=16000, frame_size=None, bits=16):
    frame_size = channels * bits // 8 if frame_size is None else frame_size
    return chunk(b'fmt ', struct.pack('<HHIIHH', kind, channels, rate, rate * frame_size % 2 ** 32, frame_size, bits))


def extensible(sub_format=1, channels=1, rate=16000, bits=16):
    guid = struct.pack('<IHH', sub_format, 0, 16) + bytes.fromhex('800000aa00389b71')
    return chunk(b'fmt ', struct.pack('<HHIIHHHHI', 0xFFFE, channels, rate, rate * channels * bits // 8,
                                      channels * bits // 8, bits, 22, bits, 0) + guid)


def riff(*chunks):
    content = b'WAVE' + b''.join(chunks)
    return struct.pack('<4sI', b'RIFF', len(content)) + content


def by_python_wave(frames, width, rate=16000):
    """frames: a list of frames, a frame a list of one signed integer for each channel."""
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setnchannels(len(frames[0]))
        file.setsampwidth(width)
        file.setframerate(rate)
        offset = 128 if width == 1 else 0
        file.writeframes(b''.join((value + offset).to_bytes(width, 'little', signed=width > 1)
                                  for frame in frames for value in frame))
    return buffer.getvalue()


four = struct.pack('<4h', 0, 16384, -32768, 32767)


@pytest.mark.parametrize('channels', [1, 2, 3, 6])
@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_every_width_and_channel_count_is_read_back_within_one_step(width, channels):
    rng = np.random.default_rng(10 * width + channels)
    full = 2 ** (8 * width - 1)
    extremes = [[-full] * channels, [full - 1] * channels, [0] * channels]
    frames = rng.integers(-full, full, (50, channels)).tolist() + extremes
    samples, rate = read_wav(by_python_wave(frames, width, rate=44100))
    expected = np.array([sum(frame) / channels / full for frame in frames])
    assert rate == 44100 and samples.dtype == np.float32 and samples.shape == (53,)
    assert np.abs(samples - expected).max() <= max(0 if channels == 1 else 1e-7, 1e-7 if width == 4 else 0)
    assert samples[-3] == -1 and samples[-1] == 0 and np.abs(samples).max() <= 1


@pytest.mark.parametrize('bits', [8, 16, 24, 32])
def test_the_extensible_header_gives_what_the_plain_header_gives(bits):
    content = np.random.default_rng(bits).bytes(48)
    plain = read_wav(riff(fmt(channels=2, bits=bits), chunk(b'data', content)))
    longer = read_wav(riff(extensible(channels=2, bits=bits), chunk(b'data', content)))
    assert plain[1] == longer[1] and (plain[0] == longer[0]).all() and len(plain[0]) == 48 * 8 // bits // 2


def test_unknown_and_odd_sized_chunks_are_skipped_wherever_they_stand():
    odd = chunk(b'LIST', b'abc')
    assert len(odd) == 12
    samples, _ = read_wav(riff(odd, fmt(), odd, chunk(b'junk', b''), chunk(b'data', four), odd))
    assert samples.tolist() == [0, 0.5, -1, 32767 / 32768]


def test_an_unfinished_last_frame_and_a_missing_last_padding_byte_do_no_harm():
    assert len(read_wav(riff(fmt(), struct.pack('<4sI', b'data', 7), four[:7]))[0]) == 3
    assert len(read_wav(riff(fmt(bits=8), struct.pack('<4sI', b'data', 7), four[:7]))[0]) == 7


@pytest.mark.parametrize('size', [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_size_that_a_streaming_program_left_open_means_to_the_end_of_the_file(size):
    data = riff(fmt(), struct.pack('<4sI', b'data', size), four)
    samples, _ = read_wav(data[:4] + struct.pack('<I', size) + data[8:])  # it could not fill that size in either
    assert samples.tolist() == [0, 0.5, -1, 32767 / 32768]


def test_the_size_in_the_riff_header_is_not_trusted():
    good = riff(fmt(), chunk(b'data', four))
    for size in (0, 1, 0xFFFFFFFF):
        assert len(read_wav(good[:4] + struct.pack('<I', size) + good[8:])[0]) == 4


@pytest.mark.parametrize('data, words', [
    (b'', 'not a WAV file'),
    (riff(fmt(), b'data\x08\0'), 'no data among'),
    (b'ID3\x04' + bytes(100), 'not a WAV file'),
    (b'RIFX' + riff(fmt(), chunk(b'data', four))[4:], 'not a WAV file'),
    (b'RF64' + riff(fmt(), chunk(b'data', four))[4:], 'not a WAV file'),
    (riff(fmt()), 'no data among'),
    (riff(fmt(), b'data'), 'no data among'),
    (riff(chunk(b'data', four), fmt()), 'does not describe'),
    (riff(chunk(b'fmt ', b'\1\0\1\0'), chunk(b'data', four)), 'does not describe'),
    (riff(fmt(kind=3, bits=32), chunk(b'data', four)), r'floating point.*ffmpeg'),
    (riff(extensible(sub_format=3, bits=32), chunk(b'data', four)), r'floating point.*ffmpeg'),
    (riff(fmt(kind=7, bits=8), chunk(b'data', four)), 'mu-law'),
    (riff(fmt(kind=0x55), chunk(b'data', four)), 'format 85'),
    (riff(fmt(kind=0xFFFE), chunk(b'data', four)), 'format 65534'),
    (riff(fmt(bits=12, frame_size=2), chunk(b'data', four)), '12 bits'),
    (riff(fmt(bits=0), chunk(b'data', four)), '0 bits'),
    (riff(fmt(channels=0), chunk(b'data', four)), '0 channels'),
    (riff(fmt(frame_size=0), chunk(b'data', four)), '0 bytes a frame'),
    (riff(fmt(frame_size=65535), chunk(b'data', four)), '65535 bytes a frame'),
    (riff(fmt(rate=0), chunk(b'data', four)), 'says 0 samples a second'),
    (riff(fmt(rate=1), chunk(b'data', four)), 'says 1 samples a second'),
    (riff(fmt(rate=2 ** 32 - 1), chunk(b'data', four)), 'not 1,000..1,000,000'),
    (riff(fmt(), chunk(b'data', four))[:-1], 'cut off: 8 bytes of sound promised, 7 there'),
    (riff(fmt(), struct.pack('<4sI', b'data', 10 ** 9), four), 'cut off: 1,000,000,000'),
    (riff(fmt(), chunk(b'data', b'')), 'no sound'),
    (riff(fmt(), chunk(b'data', b''), chunk(b'LIST', b'INFOISFT' + bytes(20))), 'no sound'),
    (riff(fmt(), chunk(b'data', b'\0')), 'no sound'),
    (riff(fmt(channels=10_000), chunk(b'data', four)), 'no sound'),
])
def test_what_cannot_be_read_is_refused_in_one_sentence(data, words):
    with pytest.raises(ValueError, match=words) as refusal:
        read_wav(data)
    assert '\n' not in str(refusal.value)


def test_hostile_bytes_give_a_value_error_or_sound_without_a_hang_and_in_little_memory():
    rng = random.Random(0)
    seeds = [riff(fmt(channels=c, bits=b), chunk(b'LIST', b'abc'), chunk(b'data', rng.randbytes(480)))
             for c in (1, 2) for b in (8, 16, 24, 32)] + [riff(extensible(bits=24), chunk(b'data', rng.randbytes(480)))]
    read = 0
    tracemalloc.start()
    for trial in range(1000):
        data = bytearray(seeds[trial % len(seeds)] if trial % 10 else rng.randbytes(200))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(min(len(data), rng.choice([70, 600])))  # the headers, or anywhere
            value = rng.choice([0, 1, 2, 3, 127, 128, 254, 255, rng.randrange(256)])
            n = rng.choice([1, 2, 4])
            data[place:place + n] = bytes([value]) * (n if rng.random() < 0.8 else rng.randrange(5))
        if trial % 7 == 0:
            data = data[:rng.randint(0, len(data))]
        begin = time.perf_counter()
        try:
            samples, rate = read_wav(bytes(data))
            assert samples.ndim == 1 and len(samples) > 0 and np.abs(samples).max() <= 1 and 1000 <= rate <= 1_000_000
            read += 1
        except ValueError:
            pass
        assert time.perf_counter() - begin < 10  # a hang, not a slow machine
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 200 < read < 800  # the mutations are neither all harmless nor all fatal
    assert peak < 2 ** 20


def test_a_file_of_nothing_but_empty_chunks_ends():
    begin = time.perf_counter()
    with pytest.raises(ValueError, match='no data among'):
        read_wav(riff(bytes(20_000_000)))
    assert time.perf_counter() - begin < 10  # a hang, not a slow machine
    assert len(read_wav(riff(*[chunk(b'junk', b'')] * 900, fmt(), chunk(b'data', four)))[0]) == 4


# ---------------------------------------------------------------- resampling

def sine(frequency, rate, seconds):
    return np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate + 0.3).astype(np.float32)


def inner(samples):
    return samples[len(samples) // 5:-len(samples) // 5]


def decibels(samples):
    return 10 * np.log10(2 * np.mean(np.float64(samples) ** 2) + 1e-30)  # 0 for a sine of amplitude 1


@pytest.mark.parametrize('rate, new_rate', [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000),
                                            (16000, 44100), (44101, 16000), (11025, 16000)])
def test_a_sine_is_the_same_sine_at_the_new_rate(rate, new_rate):
    for frequency in (200, 0.88 * min(rate, new_rate) / 2):
        got = resample(sine(frequency, rate, 0.1), rate, new_rate)
        wanted = sine(frequency, new_rate, 0.1)
        assert got.dtype == np.float32 and abs(len(got) - len(wanted)) <= 1
        n = min(len(got), len(wanted))
        assert np.abs(inner(got[:n] - wanted[:n])).max() < 0.01


@pytest.mark.parametrize('rate', [44100, 48000, 22050, 44101])
def test_what_the_new_rate_cannot_hold_is_gone_and_does_not_fold_back(rate):
    for frequency in (8000, 10000):
        assert decibels(inner(resample(sine(frequency, rate, 0.1), rate, 16000))) < -70
    assert decibels(inner(sine(10000, 44100, 0.2)[::3])) > -1  # dropping samples would have kept it


def test_raising_the_rate_leaves_no_mirror_image():
    got = inner(resample(sine(3000, 8000, 1), 8000, 16000)).astype(np.float64)
    spectrum = np.abs(np.fft.rfft(got * np.blackman(len(got))))
    frequency = np.fft.rfftfreq(len(got), 1 / 16000)
    assert spectrum[frequency > 4000].max() < 1e-3 * spectrum.max()  # without a filter 5000 Hz would be as loud as 3000


@pytest.mark.parametrize('rate, new_rate', [(44100, 16000), (8000, 16000), (3, 2), (7, 1), (1, 7), (100, 99)])
def test_a_constant_stays_and_the_length_is_as_stated(rate, new_rate):
    for n in (0, 1, 2, 3, 5, 999, 3000):
        got = resample(np.full(n, 0.5, np.float32), rate, new_rate)
        assert got.dtype == np.float32 and got.shape == (round(n * new_rate / rate),) and np.isfinite(got).all()
    assert np.abs(got[len(got) // 2 - 5:len(got) // 2 + 5] - 0.5).max() < 1e-6


def test_equal_rates_give_back_the_very_same_samples():
    samples = np.float32([0.1, -0.2])
    assert resample(samples, 16000, 16000) is samples


def test_resampling_in_blocks_is_resampling_in_one_piece():
    samples = np.random.default_rng(0).uniform(-1, 1, 441 * 40).astype(np.float32)
    whole = resample(samples, 44100, 16000)  # (160 * 40,)
    block = resample(samples[441 * 10:441 * 30], 44100, 16000)
    assert np.abs(whole[160 * 12:160 * 28] - block[160 * 2:160 * 18]).max() < 1e-6


@pytest.mark.parametrize('rate', [44100, 44101, 8000])
def test_resampling_needs_no_more_memory_than_a_copy_of_each(rate):
    samples = np.zeros(400_000 if rate != 44101 else 1_000, np.float32)
    tracemalloc.start()
    out = resample(samples, rate, 16000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < samples.nbytes + 2 * out.nbytes + 50_000


@pytest.mark.parametrize('rate, new_rate', [(0, 16000), (16000, 0), (-8000, 16000), (1, 16000), (2_000_000_000, 16000)])
def test_rates_that_make_no_sense_are_refused(rate, new_rate):
    with pytest.raises(ValueError, match='cannot resample'):
        resample(np.zeros(10, np.float32), rate, new_rate)


# ---------------------------------------------------------------- mu-law

def companded(samples):
    return np.sign(samples) * np.log(1 + 255 * np.abs(samples)) / np.log(256)


def test_decoding_is_the_formula_and_every_level_comes_back_as_itself():
    levels = np.arange(256)
    y = levels / 128 - 1
    formula = np.sign(y) * (256 ** np.abs(y) - 1) / 255
    decoded = mu_law_decode(levels.astype(np.uint8))
    assert decoded.dtype == np.float32 and np.abs(decoded - formula).max() < 1e-6
    assert (np.diff(decoded) > 0).all() and decoded[0] == -1 and decoded[128] == 0
    encoded = mu_law_encode(decoded)
    assert encoded.dtype == np.uint8 and (encoded == levels).all()
    assert (mu_law_encode(formula) == levels).all()


def test_the_companded_error_is_half_a_step_except_beyond_the_last_level():
    quiet = np.geomspace(1e-9, 1, 50_001)
    samples = np.concatenate([np.linspace(-1, 1, 100_001), quiet, -quiet])
    error = np.abs(mu_law_encode(samples) / 128 - 1 - companded(samples))
    top = companded(samples) > 127.5 / 128
    assert error[~top].max() < 1 / 256 + 1e-6
    assert 1 / 256 < error[top].max() < 1 / 128 + 1e-6
    assert error[~top].max() > 0.99 / 256  # the bound is not idle


def test_zero_is_level_128_and_the_encoding_is_monotone():
    assert mu_law_encode(np.float32([0, -0.0, 1e-9, -1e-9])).tolist() == [128] * 4
    assert mu_law_encode([1, -1]).tolist() == [255, 0]
    levels = mu_law_encode(np.linspace(-1, 1, 200_001))
    assert (np.diff(levels.astype(int)) >= 0).all() and set(levels.tolist()) == set(range(256))


def test_any_shape_is_kept_and_loud_samples_are_clipped():
    assert mu_law_encode(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert mu_law_decode(np.full((2, 3), 128)).tolist() == [[0] * 3] * 2
    assert mu_law_encode([1.5, -7, np.inf, -np.inf]).tolist() == [255, 0, 255, 0]


def test_samples_that_are_not_numbers_and_levels_out_of_range_are_refused():
    with pytest.raises(ValueError, match='1 of 3 samples are NaN'):
        mu_law_encode([0, np.nan, 1])
    for level in (-1, 256):
        with pytest.raises(ValueError, match=f'{level}'):
            mu_law_decode([0, level])


# ---------------------------------------------------------------- writing and drawing

def test_a_written_file_is_read_by_python_wave_and_bit_exactly_by_read_wav():
    samples = np.float32([0, 0.5, -1, 32767 / 32768, 1 / 32768, 7, -np.inf])
    data = write_wav(samples, 16000)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:4] == (1, 2, 16000, 7)
        assert np.frombuffer(file.readframes(7), '<i2').tolist() == [0, 16384, -32768, 32767, 1, 32767, -32768]
    again, rate = read_wav(data)
    assert rate == 16000 and write_wav(again, rate) == data
    every = np.arange(-32768, 32768) / np.float32(32768)
    assert (read_wav(write_wav(every, 8000))[0] == every).all()


def test_a_file_that_could_not_be_played_is_not_written():
    with pytest.raises(ValueError, match='1 NaN'):
        write_wav([0, np.nan], 16000)
    for rate in (0, -1, 10 ** 10):
        with pytest.raises(ValueError, match=f'at {rate} Hz'):
            write_wav([0], rate)


@pytest.mark.parametrize('samples', [[0.5], [0.0] * 50], ids=['one sample', 'silence'])
def test_even_the_shortest_and_silent_sound_is_drawn_without_a_warning(tmp_path, samples):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_audio(np.float32(samples), 16000, tmp_path / 'sound.png')
    assert (tmp_path / 'sound.png').read_bytes().startswith(b'\x89PNG')


def test_the_spectrogram_shows_a_sine_at_its_frequency(tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: drawn.append(figure))
    draw_audio(sine(1000, 16000, 0.5), 16000, tmp_path / 'sound.png')
    draw_audio(np.zeros(10, np.float32), 16000, tmp_path / 'silence.png')
    above, below = drawn[0].axes[:2]
    mesh = below.collections[0]
    row, column = np.unravel_index(mesh.get_array().argmax(), mesh.get_array().shape)
    bottom, top = mesh.get_coordinates()[row:row + 2, column, 1]
    assert bottom < 1000 < top and abs(mesh.get_array().max()) < 0.1  # a full-scale sine is 0 dB
    silence = drawn[1].axes[1].collections[0]
    assert silence.get_array().max() <= silence.get_clim()[0]  # the darkest colour
    assert above.get_xlim() == below.get_xlim() == (0, 0.5)


def test_a_picture_that_cannot_be_drawn_to_the_end_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def half(figure, file, **_):
        (file if hasattr(file, 'write') else open(file, 'wb')).write(b'half')
        raise OSError(28, 'No space left on device')
    for name, draw in dict(sound=lambda path: draw_audio(np.zeros(10), 16000, path),
                           music=lambda path: sample.draw_piano_roll([(0, 1, 60, 64)], path)).items():
        path = tmp_path / f'{name}.png'
        draw(path)
        whole = path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(Figure, 'savefig', half)
            draw(path)
        assert path.read_bytes() == whole


def test_no_sound_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match='no sound'):
        draw_audio([], 16000, tmp_path / 'sound.png')


def test_the_picture_of_a_click_shows_it_at_its_time_and_to_its_height(tmp_path, drawn):
    samples = np.zeros(32000, np.float32)
    samples[24000:24002] = 0.5, -0.25
    draw_audio(samples, 16000, tmp_path / 'click.png')
    above, below = drawn[0].axes[:2]
    seconds, amplitude = above.lines[0].get_data()
    assert amplitude.max() == 0.5 and amplitude.min() == -0.25
    assert abs(seconds[amplitude.argmax()] - 1.5) < 0.01 and abs(seconds[amplitude.argmin()] - 1.5) < 0.01
    mesh = below.collections[0]
    loudest = mesh.get_array().sum(axis=0).argmax()
    assert abs(mesh.get_coordinates()[0, loudest, 0] - 1.5) < 0.01
