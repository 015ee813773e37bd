"""MIDI files to notes, notes to events and back; folders of files as people have them."""

import hashlib
import os
import random
import struct
from collections import defaultdict

import numpy as np
import pytest

import prepare_data
from prepare_data import encode_notes, music_tokens, read_midi, write_aside
from sample import decode_notes, write_midi
from test_data import prepared

END = ' 00 FF2F00'
NOTE = '00 903C40 64 803C40'  # pitch 60, velocity 64, 100 ms
OTHER = '00 913E40 64 813E40' + END  # pitch 62

def midi(*tracks, count=2, sizes=(), division=500, form=1):
    """A MIDI file of tracks in hexadecimal; a tick is 1 ms."""
    data = struct.pack('>4sIHHH', b'MThd', 6, form, count, division)
    for track, size in zip(map(bytes.fromhex, tracks), [*sizes, None, None]):
        data += b'MTrk' + struct.pack('>I', len(track) if size is None else size) + track
    return data

def pitches(data):
    return [note[2] for note in read_midi(data)]

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('options', [dict(count=1), dict(count=9), dict(form=0), dict(sizes=(3, 0)),
                                     dict(sizes=(17, 99)), dict(sizes=(99, 2 ** 32 - 1))])
def test_no_number_of_tracks_and_no_length_is_needed(options):
    for first in (NOTE + END, NOTE, NOTE + '00 FF0104 4D54726B' + END):  # a text may be MTrk
        assert pitches(b'RIFF....RMID' + midi(first, OTHER, **options) + b'LIST') == [60, 62]

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('track, expected', [
    ('00 903C40 64 3C00 00 3E41 64 3E00', [60, 62]), ('00 903C40 10 F8 10 FE 44 803C40', [60]),
    ('00 903C40 00 FF0102 6162 64 3C00 00 3E40 64 3E00', [60, 62]),
    ('00 903C40 00 F002 01F7 64 3C00 00 3E40 64 3E00', [60, 62]),
    ('00 993C40 00 803E40 64 893C40' + NOTE, [60]),
    ('00 C005 00 D07F 00 E00040 00 A03C40 00 B00740' + NOTE, [60])])
def test_running_status_goes_on_over_other_events(track, expected):
    assert pitches(midi(track + END)) == expected

def test_times_follow_the_tempo_in_every_track_and_do_not_drift():
    notes = '00 903C40 8768 803C40' + END
    tempo = '8374 FF5103 0F4240' + END  # a second a quarter from tick 500
    assert read_midi(midi(notes, tempo)) == read_midi(midi(tempo, notes)) == [(0, 1.5, 60, 64)]
    thirds = '00 FF5103 051615 01 FF5103 051616 01 FF0100' * 5000
    assert read_midi(midi(thirds + NOTE + END, division=3))[0][0] == 666_667 * 5000 / 3_000_000

@pytest.mark.parametrize('frames, per_second', [(24, 24), (25, 25), (29, 30000 / 1001), (30, 30)])
def test_smpte_counts_parts_of_a_frame_and_knows_no_tempo(frames, per_second):
    track = '00 FF5103 000002 00 903C40 64 FF5103 123456 8310 803C40' + END
    end = pytest.approx(500 / per_second / 160)
    assert read_midi(midi(track, division=(256 - frames) << 8 | 160)) == [(0, end, 60, 64)]
    for nothing in 0, 0xE800:
        with pytest.raises(ValueError):
            read_midi(midi(track, division=nothing))

@pytest.mark.parametrize('track, expected', [
    ('00 B0407F' + NOTE + '0A B04040 0A B0403F', [(0, 0.12, 60, 64)]),
    ('00 B0403F' + NOTE + '0A B04000', [(0, 0.1, 60, 64)]),
    ('00 B0407F 00 903C40 0A B04000 0A 803C40', [(0, 0.02, 60, 64)]),
    ('00 B0407F' + NOTE + '0A 903C41 0A 803C40', [(0, 0.11, 60, 64), (0.11, 0.12, 60, 65)]),
    ('00 B0407F' + NOTE + '0A 913C40 0A 813C40', [(0, 0.12, 60, 64), (0.11, 0.12, 60, 64)]),
    ('00 B0407F 00 903C0A 0A 903C14 0A B04000 0A 803C00 0A 803C00',
     [(0, 0.01, 60, 10), (0.01, 0.04, 60, 20)]),
    ('00 B0407F' + NOTE + '64' + END[3:], [(0, 0.2, 60, 64)]),
    ('00 903C40 64' + END[3:], [(0, 0.1, 60, 64)]), ('00 903C40 00 803C40', [])])
def test_the_pedal_holds_notes(track, expected):
    assert read_midi(midi(track + END)) == expected

def notes_by_mido(path):
    """The same notes by mido: first in, first out for every channel and key."""
    now, keys, notes = 0, defaultdict(list), []
    for message in pytest.importorskip('mido').MidiFile(path):
        now += message.time  # in seconds
        if message.type in ('note_on', 'note_off') and message.channel != 9:
            starts = keys[message.channel, message.note]
            if message.type == 'note_on' and message.velocity:
                starts.append((now, message.velocity))
            elif starts:
                start, velocity = starts.pop(0)
                notes.append((start, now, message.note, velocity))
    notes += [(start, now, key, velocity) for (_, key), starts in keys.items()
              for start, velocity in starts]
    return [note for note in notes if note[0] < note[1]]

def same_notes(*both):
    ours, theirs = (sorted((pitch, round(start, 4), round(end, 4), velocity)
                           for start, end, pitch, velocity in notes) for notes in both)
    return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=2e-4)

@pytest.mark.parametrize('seed', range(20))
def test_mido_reads_the_same_notes_and_what_is_written(tmp_path, seed):
    mido = pytest.importorskip('mido')
    rng, path = random.Random(seed), tmp_path / 'a.mid'
    file = mido.MidiFile(type=seed % 2, ticks_per_beat=rng.choice([24, 96, 480, 960]))
    file.tracks += [mido.MidiTrack() for _ in range(1 + 2 * (seed % 2))]
    for _ in range(150 * len(file.tracks)):
        when = dict(time=rng.choice([0, 0, 1, 7, 200, 6000]), channel=rng.choice([0, 1, 9]))
        note = dict(when, note=rng.randrange(60, 64), velocity=rng.choice([0, 1, 64, 127]))
        rng.choice(file.tracks).append(rng.choices([
            mido.Message('note_on', **note), mido.Message('note_off', **note),
            mido.Message('program_change', **when), mido.Message('sysex', data=[1, 2]),
            mido.MetaMessage('set_tempo', tempo=rng.randrange(1, 2_000_000))], [8, 6, 1, 1, 1])[0])
    file.save(path)
    notes = read_midi(path.read_bytes())
    assert len(notes) > 20 and same_notes(notes, notes_by_mido(path))
    notes = decode_notes(encode_notes(notes))
    path.write_bytes(write_midi(notes))
    assert same_notes(notes, notes_by_mido(path)) and read_midi(path.read_bytes()) == notes

@pytest.mark.parametrize('data', [b'', b'MThd', b'RIFF' + bytes(40), midi(NOTE + END, division=0),
                                  midi('00 903C40' + ' FFFFFF7F FF0100' * 9 + NOTE + END)], ids=str)
def test_no_midi_file_or_one_of_more_than_a_day_is_refused(data):
    with pytest.raises(ValueError):
        read_midi(data)

@pytest.mark.parametrize('damage', ['81', '00 90', '00 3C', '00 90FF40', '8080808001 903C40',
                                    '00 F4', '00 FF51 03 07', '00 F0 FFFFFF7F 01'])
def test_what_stands_before_a_damage_counts(damage):
    with pytest.warns(UserWarning, match='track 1'):
        assert pitches(midi(NOTE + damage, OTHER)) == [60, 62]

def test_a_file_is_named_wherever_it_is_cut():
    whole = midi(NOTE + '8748 903E40 64 803E40' + END)
    for end in range(whole.index(b'MTrk') + 8, len(whole)):
        with pytest.warns(UserWarning, match='track 1'):
            assert pitches(whole[:end]) in ([], [60], [60, 62])

def test_the_ids_of_the_vocabulary_and_their_order():
    notes = [(2.5, 3.5, 60, 1), (3.5, 3.5, 60, 4), (3.504, 5, 50, 127), (3.5, 5, 64, 127)]
    assert encode_notes(notes).tolist() == [355, 355, 305, 356, 60, 355, 188, 60, 387, 64, 50, 256,
                                            188, 355, 304, 192, 178]

def test_notes_on_the_grid_come_back_exactly():
    rng = random.Random(2)
    for _ in range(100):
        notes, free = [], defaultdict(int)
        for pitch in rng.choices(range(128), k=60):
            first = free[pitch] + rng.choice([0, rng.randrange(300)])
            free[pitch] = first + rng.randrange(1, 300)
            notes.append((first / 100, free[pitch] / 100, pitch, 1 + 4 * rng.randrange(32)))
        notes.sort(key=lambda note: (note[0], note[2]))
        assert decode_notes(encode_notes(notes[::-1])) == notes

def tune(seed):
    rng = random.Random(seed)
    return write_midi([(k / 10, k / 10 + 0.1, rng.randrange(40, 80), 64) for k in range(20)])

@pytest.mark.skipif(os.name == 'nt', reason='Windows has other links')
def test_a_folder_counts_equal_tokens_once_and_names_problems(here, capsys):
    for n in range(20):
        write_aside(f'in/{"ab"[n % 2]}/{n}.{"mid" if n % 3 else "MIDI"}', tune(n))
    write_aside('in/b/copy.mid', tune(3) + b'tail')
    write_aside('in/damaged.mid', midi(NOTE + '00 90', OTHER))
    write_aside('in/empty.mid', b'')
    write_aside('elsewhere/20.mid', tune(20))
    for target, link in (('..', 'a/up'), ('nowhere', 'a/lost.mid'), (here / 'elsewhere', 'linked')):
        os.symlink(target, f'in/{link}')
    with pytest.raises(SystemExit):  # too few
        prepare_data.main(['--midi', 'elsewhere', '--name=few'])
    prepare_data.main(['--midi', 'in', '--name=in'])
    out = capsys.readouterr().out.splitlines()[1:]
    for line, name in zip(out, ['lost', 'copy', 'damaged', 'empty']):
        assert name in line
    assert [int(word) for word in out[4].split() if word.isdigit()] == [22, 2, 1]

    # the hash of the tokens decides
    pieces = [music_tokens(tune(n)) for n in range(21)] + [music_tokens(midi(NOTE, OTHER))]
    pieces.sort(key=lambda tokens: hashlib.sha256(tokens).hexdigest())
    for split, part in dict(val=pieces[:2], test=pieces[2:4], train=pieces[4:]).items():
        assert prepared('in')[1][split].tolist() == np.concatenate(part).tolist()
