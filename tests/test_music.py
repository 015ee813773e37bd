import random
import struct
import time
from collections import defaultdict

import numpy as np
import pytest

from prepare_data import encode_notes, read_midi
from sample import decode_notes, draw_piano_roll, write_midi

PIECE_OF_500_TICKS = '00 903C40 8374 803C40'  # pitch 60, velocity 64, from tick 0 to tick 500


def midi(*tracks, form=None, division=500, extra=b''):
    """A MIDI file of tracks given in hexadecimal; with division 500 and no tempo, a tick is 1 ms."""
    form = (len(tracks) > 1) if form is None else form
    chunks = b''.join(b'MTrk' + struct.pack('>I', len(data)) + data for data in map(bytes.fromhex, tracks))
    return b'MThd' + struct.pack('>IHHH', 6 + len(extra), form, len(tracks), division) + extra + chunks


def refused(data, word):
    with pytest.raises(ValueError, match=word) as caught:
        read_midi(data)
    return '\n' not in str(caught.value)


# read_midi: the file format

def test_a_note_lasts_from_its_note_on_to_its_note_off():
    assert read_midi(midi('00 903C40 8374 803C40 00 FF2F00')) == [(0, 0.5, 60, 64)]


def test_a_track_may_miss_its_end_of_track_event_and_what_follows_one_is_ignored():
    assert read_midi(midi('00 903C40 64 803C40')) == [(0, 0.1, 60, 64)]
    assert read_midi(midi('00 903C40 64 803C40 00 FF2F00 00 00 12 99 FF')) == [(0, 0.1, 60, 64)]


def test_a_note_on_of_velocity_0_is_a_note_off():
    assert read_midi(midi('00 903C40 64 903C00')) == [(0, 0.1, 60, 64)]


def test_running_status_repeats_the_status_byte():
    assert read_midi(midi('00 903C40 64 3C00 00 3E41 64 3E00')) == [(0, 0.1, 60, 64), (0.1, 0.2, 62, 65)]


@pytest.mark.parametrize('event', ['F0 02 01F7', 'F7 01 F3', 'FF 01 02 6162', 'FF 51 03 07A120'])
def test_meta_and_sysex_events_are_skipped_and_cancel_running_status(event):
    assert read_midi(midi(f'00 903C40 00 {event} 64 803C40')) == [(0, 0.1, 60, 64)]
    assert refused(midi(f'00 903C40 00 {event} 64 3C00'), 'damaged')


def test_messages_of_one_and_of_two_data_bytes_are_skipped():
    assert read_midi(midi('00 C005 00 D07F 00 E00040 00 A03C40 00 B00740 0A 903C40 00 C006 07 05 64 803C40')) == \
        [(0.01, 0.117, 60, 64)]


def test_a_status_that_no_midi_file_may_hold_is_refused():
    for status in ('F1', 'F2', 'F4', 'F8', 'FE'):
        assert refused(midi(f'00 {status} 0000 00 903C40'), 'damaged')
    assert refused(midi('00 3C40'), 'damaged')
    assert refused(midi('00 908040'), 'damaged')
    assert refused(midi('00 903C80'), 'damaged')


def test_variable_length_numbers_have_one_to_four_bytes():
    for delta, ticks in (('7F', 127), ('8100', 128), ('FF7F', 16383), ('818000', 16384), ('81808000', 2 ** 21)):
        assert read_midi(midi(f'00 903C40 {delta} 803C40')) == [(0, ticks / 1000, 60, 64)]
    assert refused(midi('00 903C40 8080808001 803C40'), '4 bytes')


def test_a_tempo_in_any_track_holds_for_all_tracks_from_its_tick_on():
    notes = '00 903C40 8768 803C40 8768 903D40 8768 803D40'  # on, off, on, off at ticks 0, 1000, 2000, 3000
    tempos = '83 74 FF5103 0F4240 8F50 FF5103 03D090'        # a second a quarter at tick 500, a quarter second at 2500
    expected = [(0, 1.5, 60, 64), (3.5, 4.75, 61, 64)]
    assert read_midi(midi(notes, tempos)) == expected
    assert read_midi(midi(tempos, notes)) == expected


def test_a_tempo_of_0_or_of_other_than_3_bytes_is_ignored():
    for tempo in ('03 000000', '00', '02 0001', '04 00000001', '78' + 'FF' * 120):
        assert read_midi(midi(f'00 FF51 {tempo} 00 903C40 64 FF51 {tempo} 64 803C40')) == [(0, 0.2, 60, 64)]


def test_many_tempo_changes_do_not_add_up_to_a_drift():
    steps = 5000  # each lasts 333,333 + 333,334 microseconds a quarter note, of which it takes a third and a third
    track = ' '.join(['00 FF5103 051615 01 FF5103 051616 01 FF0100'] * steps) + ' 00 903C40 01 803C40'
    assert read_midi(midi(track, division=3))[0][0] == (333_333 + 333_334) * steps / 3_000_000


@pytest.mark.parametrize('frames, per_second', [(24, 24), (25, 25), (29, 30000 / 1001), (30, 30)])
def test_an_smpte_division_counts_ticks_of_frames_and_knows_no_tempo(frames, per_second):
    track = '00 FF5103 000002 00 903C40 64 FF5103 123456 8310 803C40'
    end = pytest.approx(500 / per_second / 160)
    assert read_midi(midi(track, division=(256 - frames) << 8 | 160)) == [(0, end, 60, 64)]


@pytest.mark.parametrize('division', [0, 0xE800, 0xE328 + 0x100, 0x8001, 0xFF28, 0x8000])
def test_a_division_that_gives_a_tick_no_duration_is_refused(division):
    assert refused(midi(PIECE_OF_500_TICKS, division=division), 'division')


def test_format_2_is_refused():
    assert refused(midi(PIECE_OF_500_TICKS, form=2), 'format 2')


def test_unknown_chunks_between_tracks_and_bytes_behind_the_last_are_skipped_and_the_header_may_be_longer():
    data = midi('00 903C40 64 803C40', '00 913E40 64 813E40', extra=b'new')
    second = data.rindex(b'MTrk')
    data = data[:second] + b'XFIH' + struct.pack('>I', 5) + b'MTrk?' + data[second:] + b'tail'
    assert [note[2] for note in read_midi(data)] == [60, 62]


def test_what_is_no_midi_file_is_refused():
    for data in (b'', b'MThd', b'RIFF' + bytes(40), bytes(100), b'\x89PNG\r\n\x1a\n' + bytes(100)):
        assert refused(data, 'MThd')


def test_a_file_cut_anywhere_is_refused():
    whole = midi('00 903C40 64 803C40 00 FF2F00', '00 F0 05 01020304F7 00 C107 00 913E40 8764 813E40 00 FF2F00')
    assert len(read_midi(whole)) == 2
    for length in range(len(whole)):
        assert refused(whole[:length], 'cut|MThd')


def test_an_event_that_goes_on_behind_its_track_is_refused():
    for track in ('00', '80', '00 90', '00 903C', '00 C0', '00 FF', '00 FF51', '00 FF5103 07A1', '00 F0 05 01',
                  '00 F7 FFFFFF7F'):
        assert refused(midi(track, PIECE_OF_500_TICKS), 'cut')


def test_a_chunk_that_claims_to_be_huge_is_refused_at_once():
    assert refused(midi()[:10] + b'\xff\xff\x01\xf4MTrk\xff\xff\xff\xff', 'cut')
    assert refused(b'MThd\xff\xff\xff\xff\0\0\0\1\1\xf4', 'cut')


def test_a_file_without_tracks_or_notes_has_no_notes():
    assert read_midi(midi()) == read_midi(midi('')) == read_midi(midi('00 FF2F00')) == []


def test_a_piece_of_more_than_24_hours_is_refused():
    assert refused(midi('00 FF5103 FFFFFF' + ' FFFFFF7F FF0100' * 1000), '24 hours')
    assert len(read_midi(midi('00 903C40 A999B800 803C40'))) == 1              # 86,400,000 ms
    assert refused(midi('00 903C40 A999B801 803C40'), '24 hours')


# read_midi: which notes sound, and how long

def test_notes_are_sorted_by_start_then_pitch_over_all_tracks_and_channels():
    notes = read_midi(midi('00 904040 64 804040 00 903C41 64 803C41', '00 953C40 8748 853C40'))
    assert notes == [(0, 0.968, 60, 64), (0, 0.1, 64, 64), (0.1, 0.2, 60, 65)]


def test_percussion_is_left_out():
    assert read_midi(midi('00 993C40 00 903E40 64 893C40 00 803E40')) == [(0, 0.1, 62, 64)]


def test_a_note_off_ends_the_oldest_note_on_of_its_channel_and_pitch():
    track = '00 903C0A 0A 903C14 0A 913C1E 0A 803C00 0A 803C00 0A 813C00'
    assert read_midi(midi(track)) == [(0, 0.03, 60, 10), (0.01, 0.04, 60, 20), (0.02, 0.05, 60, 30)]


def test_a_note_off_without_its_note_on_is_ignored():
    assert read_midi(midi('00 803C40 0A 903C40 00 813C40 00 803D40 0A 803C40 0A 803C40')) == [(0.01, 0.02, 60, 64)]


def test_a_note_without_note_off_ends_with_the_last_event_of_the_piece():
    assert read_midi(midi('00 903C40 64 FF2F00', '8148 C001')) == [(0, 0.2, 60, 64)]


def test_a_note_that_ends_on_the_tick_of_its_onset_is_left_out():
    assert read_midi(midi('0A 903C40 00 803C40 0A 903E40 64 803E40')) == [(0.02, 0.12, 62, 64)]
    assert read_midi(midi('0A 903C40')) == []


def test_a_note_released_under_the_pedal_sounds_until_pedal_up():
    assert read_midi(midi('00 B0407F 00 903C40 0A 803C40 0A B04040 0A B0403F 0A B04000')) == [(0, 0.03, 60, 64)]


def test_a_controller_value_of_64_is_pedal_down_and_63_is_pedal_up():
    assert read_midi(midi('00 903C40 00 B04040 0A 803C40 0A B04000')) == [(0, 0.02, 60, 64)]
    assert read_midi(midi('00 903C40 00 B0403F 0A 803C40 0A B04000')) == [(0, 0.01, 60, 64)]


def test_a_key_still_held_at_pedal_up_sounds_until_its_note_off():
    assert read_midi(midi('00 B0407F 00 903C40 0A B04000 0A 803C40')) == [(0, 0.02, 60, 64)]


def test_the_next_onset_of_its_pitch_ends_a_note_under_the_pedal():
    track = '00 B0407F 00 903C40 0A 803C40 0A 903C41 0A 903E41 0A 803C40 00 803E40 0A B04000'
    assert read_midi(midi(track)) == [(0, 0.02, 60, 64), (0.02, 0.05, 60, 65), (0.03, 0.05, 62, 65)]


def test_an_onset_under_the_pedal_ends_a_held_note_whose_note_off_then_still_counts_as_its_own():
    # two note_ons; the first note_off belongs to the first, so the second sounds until its own, after pedal-up
    track = '00 B0407F 00 903C0A 0A 903C14 0A B04000 0A 803C00 0A 803C00'
    assert read_midi(midi(track)) == [(0, 0.01, 60, 10), (0.01, 0.04, 60, 20)]


def test_the_pedal_of_one_channel_does_not_hold_the_notes_of_another_and_an_onset_there_ends_nothing():
    track = '00 B0407F 00 903C40 00 913E40 0A 803C40 00 813E40 0A 913C40 0A 813C40 0A B04000'
    assert read_midi(midi(track)) == [(0, 0.04, 60, 64), (0, 0.01, 62, 64), (0.02, 0.03, 60, 64)]


def test_a_pedal_that_never_comes_up_holds_until_the_end_of_the_piece():
    assert read_midi(midi('00 B0407F 00 903C40 0A 803C40 64 FF2F00')) == [(0, 0.11, 60, 64)]


def notes_by_mido(path):
    """The same notes, read by mido and found by looking at the whole list of messages again for every note."""
    import mido
    file, seconds, tempo, messages = mido.MidiFile(path), 0.0, 500_000, []
    for message in mido.merge_tracks(file.tracks):
        seconds += mido.tick2second(message.time, file.ticks_per_beat, tempo)
        tempo = message.tempo if message.type == 'set_tempo' else tempo
        if not message.is_meta and message.type != 'sysex' and message.channel != 9:
            messages.append((seconds, message))
    held, keys, down = [], defaultdict(list), []        # held: index of the note_on, of its note_off
    pedals = defaultdict(bool)
    for index, (_, message) in enumerate(messages):
        down.append(pedals[message.channel])            # whether the pedal is down when the message comes
        if message.type == 'control_change' and message.control == 64:
            pedals[message.channel] = message.value >= 64
        elif message.type == 'note_on' and message.velocity:
            keys[message.channel, message.note].append(index)
        elif message.type in ('note_on', 'note_off') and keys[message.channel, message.note]:
            held.append((keys[message.channel, message.note].pop(0), index))
    held += [(index, len(messages)) for indices in keys.values() for index in indices]
    notes = []
    for first, last in held:
        start, message = messages[first]
        end = seconds
        for index in range(first + 1, len(messages)):
            now, other = messages[index]
            if other.channel != message.channel:
                continue
            struck = other.type == 'note_on' and other.velocity and other.note == message.note and down[index]
            pedal_up = other.type == 'control_change' and other.control == 64 and other.value < 64 and index > last
            if struck or pedal_up or (index == last and not down[index]):
                end = now
                break
        if start < end:
            notes.append((start, end, message.note, message.velocity))
    return notes


def same_notes(ours, theirs):
    def order(note):
        return round(note[0], 5), note[2], note[3], note[1]
    assert len(ours) == len(theirs)
    for one, other in zip(sorted(ours, key=order), sorted(theirs, key=order)):
        assert one == pytest.approx(other, rel=0, abs=1e-6)


@pytest.mark.parametrize('seed', range(40))
def test_notes_are_those_that_mido_reads(tmp_path, seed):
    mido = pytest.importorskip('mido')
    rng = random.Random(seed)
    form, pedals = seed % 2, seed % 4 > 1
    file = mido.MidiFile(type=form, ticks_per_beat=rng.choice([24, 96, 480, 960]))
    for _ in range(1 + 2 * form):
        track = mido.MidiTrack()
        file.tracks.append(track)
        for _ in range(150):
            channel, note, wait = rng.choice([0, 1, 9]), rng.randrange(60, 64), rng.choice([0, 0, 1, 7, 200, 6000])
            kind = rng.choices(['note_on', 'note_off', 'pedal', 'set_tempo', 'program_change', 'sysex'],
                               [8, 6, 2 * pedals, 1, 1, 1])[0]
            if kind.startswith('note'):
                velocity = rng.choice([0, 1, 64, 127]) if kind == 'note_on' else 64
                track.append(mido.Message(kind, channel=channel, note=note, velocity=velocity, time=wait))
            elif kind == 'pedal':
                track.append(mido.Message('control_change', channel=channel, control=rng.choice([64, 64, 66]),
                                          value=rng.choice([0, 63, 64, 127]), time=wait))
            elif kind == 'set_tempo':
                track.append(mido.MetaMessage(kind, tempo=rng.randrange(1, 2_000_000), time=wait))
            else:
                track.append(mido.Message(kind, time=wait))
    file.save(tmp_path / 'random.mid')
    ours = read_midi((tmp_path / 'random.mid').read_bytes())
    theirs = notes_by_mido(tmp_path / 'random.mid')
    assert len(ours) > 20 and ours == sorted(ours, key=lambda note: (note[0], note[2]))
    same_notes(ours, theirs)


def test_random_and_mutated_files_give_notes_or_a_value_error_and_never_hang():
    rng = random.Random(0)
    seeds = [midi('00 FF5103 07A120 00 B0407F 00 903C40 64 803C40 00 F0 02 01F7', '00 914040 8364 4000 00 FF2F00'),
             midi('00 903C40 64 3C00 0A 3E41 64 3E00 00 B0407F 64 B04000 00 C001', '00 913C40 A999B800 813C40'),
             midi(PIECE_OF_500_TICKS + ' 00 FF2F00', division=0xE728)]
    results = {'notes': 0, 'refused': 0}
    for trial in range(1000):
        data = bytearray(rng.choice(seeds))
        if trial % 4 == 0:                              # any bytes behind a good header
            data[14:] = rng.randbytes(rng.randrange(300))
        elif trial % 4 == 1:                            # any bytes in a good track, most of them plausible
            body = bytes(rng.choice([0, 1, 60, 64, 0x80, 0x90, 0xB0, 0xC0, 0xF0, 0xFF, 0x51, 3, rng.randrange(256)])
                         for _ in range(rng.randrange(100)))
            data = bytearray(midi(body.hex(), form=rng.choice([0, 1]), division=rng.choice([1, 96, 0xE728, 0x7FFF])))
        for _ in range(rng.randrange(4)):
            if data:
                position = rng.randrange(len(data))
                change = rng.randrange(3)
                if change == 0:
                    data[position] = rng.randrange(256)
                elif change == 1:
                    del data[position:position + rng.randrange(9)]
                else:
                    data[position:position] = rng.randbytes(rng.randrange(9))
        began = time.process_time()
        try:
            notes = read_midi(bytes(data))
        except ValueError as error:
            assert '\n' not in str(error) and len(str(error)) < 300
            results['refused'] += 1
        else:
            assert all(0 <= start < end <= 86400 and pitch in range(128) and velocity in range(1, 128)
                       for start, end, pitch, velocity in notes)
            if max((note[1] for note in notes), default=0) < 100:
                assert len(decode_notes(encode_notes(notes))) == len(read_midi(write_midi(notes))) == len(notes)
            results['notes'] += 1
        assert time.process_time() - began < 10  # a hang, not a slow machine
    assert min(results.values()) > 100, results         # both happen, or this tests nothing


@pytest.mark.parametrize('track', [
    '00 B0407F ' + '00 903C40 ' * 20_000,                                   # struck under the pedal, never released
    '00 903C40 ' * 20_000 + '00 803C40 ' * 20_000,                          # first in first out of a long queue
    '00 B0407F ' + '00 903C40 00 803C40 ' * 10_000 + '00 B04000 ' * 10_000,
    '00 903C40 ' * 10_000 + '00 B0407F 00 803C40 00 B04000 ' * 10_000,
], ids=['struck', 'queue', 'released', 'pedalled'])
def test_a_hostile_track_does_not_take_time_in_the_square_of_its_length(track):
    began = time.process_time()
    read_midi(midi(track))
    assert time.process_time() - began < 10  # a hang, not a slow machine


# the 388-event vocabulary

NOTE_ON, NOTE_OFF, SHIFT, VELOCITY = 0, 128, 255, 356   # a shift of k steps is SHIFT + k


def random_notes(rng):
    """Notes at random times, with chords, repeats, overlaps and lengths that round to nothing."""
    grid = [rng.uniform(0, 8) for _ in range(30)]
    notes = []
    for _ in range(rng.randrange(60)):
        start = rng.choice([rng.choice(grid), rng.uniform(0, 8), rng.randrange(800) / 100])
        end = rng.choice([start, start + rng.uniform(0, 0.01), start + rng.uniform(0, 3), max(start, rng.choice(grid))])
        notes.append((start, end, rng.choice([0, 127, 60, 61, 62]), rng.randrange(1, 128)))
    return notes


def canonical(notes):
    """What the vocabulary can say of notes: steps of 10 ms, velocity bins, and within a pitch first in, first out."""
    by_pitch = defaultdict(list)
    for start, end, pitch, velocity in sorted(notes, key=lambda note: (note[0], note[2])):
        first = int(np.floor(start * 100 + 0.5))
        last = max(int(np.floor(end * 100 + 0.5)), first + 1)
        by_pitch[pitch].append((first, last, (velocity - 1) // 4 * 4 + 1))
    said = []
    for pitch, group in by_pitch.items():
        ends = sorted(last for _, last, _ in group)
        said += [(first / 100, last / 100, pitch, velocity) for (first, _, velocity), last in zip(group, ends)]
    return sorted(said, key=lambda note: (note[0], note[2]))


def test_the_ids_of_a_single_note():
    tokens = encode_notes([(0, 0.5, 60, 64)])
    assert tokens.tolist() == [VELOCITY + 15, NOTE_ON + 60, SHIFT + 50, NOTE_OFF + 60] == [371, 60, 305, 188]
    assert tokens.dtype == np.uint16 and encode_notes([]).dtype == np.uint16 and encode_notes([]).shape == (0,)


def test_a_pause_longer_than_a_second_is_several_shifts():
    assert encode_notes([(2.5, 3.5, 60, 1)]).tolist() == [355, 355, SHIFT + 50, VELOCITY, 60, 355, NOTE_OFF + 60]


def test_a_velocity_event_comes_only_where_the_bin_changes_and_before_a_note_on():
    notes = [(0, 1, 60, 61), (0, 1, 62, 64), (1, 2, 60, 65), (2, 3, 60, 68), (3, 4, 60, 127), (4, 5, 60, 1)]
    tokens = encode_notes(notes).tolist()
    assert [token - VELOCITY for token in tokens if token >= VELOCITY] == [15, 16, 31, 0]
    assert all(tokens[index + 1] < 128 for index, token in enumerate(tokens) if token >= VELOCITY)


def test_times_are_rounded_to_the_nearest_step_of_absolute_time_so_that_errors_do_not_add_up():
    notes = [(k * 0.0149, k * 0.0149 + 0.0149, 60 + k % 2, 64) for k in range(500)]
    steps, now = [], 0
    for token in encode_notes(notes).tolist():
        if 256 <= token < 356:
            now += token - SHIFT
        elif token < 128:
            steps.append(now)
    assert max(abs(step / 100 - note[0]) for step, note in zip(steps, notes)) <= 0.005 + 1e-9


def test_a_half_step_is_rounded_up():
    assert decode_notes(encode_notes([(0.125, 0.375, 60, 64)]))[0][:2] == (0.13, 0.38)


def test_a_repeated_note_is_ended_before_it_is_struck_again():
    tokens = encode_notes([(0, 1, 60, 64), (1, 2, 60, 64)]).tolist()
    assert tokens[1:] == [60, 355, NOTE_OFF + 60, 60, 355, NOTE_OFF + 60]


def test_notes_of_one_step_are_ordered_by_start_and_pitch():
    tokens = encode_notes([(0.001, 1, 50, 64), (0, 1, 64, 64), (0, 1, 60, 64)]).tolist()
    assert tokens[1:4] == [60, 64, 50] and tokens[5:] == [NOTE_OFF + 60, NOTE_OFF + 64, NOTE_OFF + 50]


def test_a_note_too_short_for_a_step_gets_one():
    for start, end in ((1, 1), (1.001, 1.002), (1.004, 1.0041)):
        assert decode_notes(encode_notes([(start, end, 60, 64)])) == [(1, 1.01, 60, 61)]


@pytest.mark.parametrize('note', [(-0.1, 1, 60, 64), (1, 0.5, 60, 64), (np.nan, 1, 60, 64), (0, np.inf, 60, 64),
                                  (0, 1, 128, 64), (0, 1, -1, 64), (0, 1, 60, 0), (0, 1, 60, 128), (0, 1e300, 60, 64)])
def test_what_is_no_note_is_refused(note):
    for function in (encode_notes, write_midi):
        with pytest.raises(ValueError, match='pitch'):
            function([(0, 1, 60, 64), note])


def test_decoding_undoes_encoding_up_to_steps_and_bins_and_first_in_first_out():
    rng = random.Random(1)
    for _ in range(200):
        notes = random_notes(rng)
        assert decode_notes(encode_notes(notes)) == canonical(notes)


def test_notes_of_steps_and_bins_that_do_not_overlap_in_a_pitch_come_back_exactly():
    rng = random.Random(2)
    for _ in range(100):
        notes, free = [], defaultdict(int)
        for _ in range(rng.randrange(60)):
            pitch = rng.randrange(128)
            first = free[pitch] + rng.choice([0, rng.randrange(300)])
            free[pitch] = first + rng.randrange(1, 300)
            notes.append((first / 100, free[pitch] / 100, pitch, 1 + 4 * rng.randrange(32)))
        notes.sort(key=lambda note: (note[0], note[2]))
        tokens = encode_notes(rng.sample(notes, len(notes)))    # whatever the order they come in
        assert decode_notes(tokens) == notes
        assert encode_notes(decode_notes(tokens)).tolist() == tokens.tolist()


def test_any_tokens_can_be_decoded_encoded_and_written():
    rng = np.random.default_rng(3)
    for trial in range(200):
        size = rng.integers(200)
        few = np.array([60, 61, 188, 189, 256, 265, 356, 387])
        tokens = rng.choice(few, size) if trial % 2 else rng.integers(388, size=size).astype(np.uint16)
        notes = decode_notes(tokens)
        assert len(notes) == (tokens < 128).sum()
        assert decode_notes(encode_notes(notes)) == notes == read_midi(write_midi(notes))


def test_decoding_follows_its_rules():
    assert decode_notes([60, 265, 188]) == [(0, 0.1, 60, 61)]                          # bin 15 until another is given
    assert decode_notes([356, 60, 387, 61, 265]) == [(0, 0.1, 60, 1), (0, 0.1, 61, 125)]  # ends at the last step
    assert decode_notes([188, 60, 265, 188, 265, 188]) == [(0, 0.1, 60, 61)]           # no note_on, no note_off
    assert decode_notes([356, 60, 265, 387, 60, 265, 188, 265, 188]) == [(0, 0.2, 60, 1), (0.1, 0.3, 60, 125)]
    assert decode_notes([265, 60, 188, 265]) == decode_notes([265, 60]) == [(0.1, 0.11, 60, 61)]
    assert decode_notes([]) == decode_notes(np.array([], dtype=np.uint16)) == decode_notes([355, 387, 188]) == []


@pytest.mark.parametrize('token', [388, 65535, -1])
def test_an_id_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f'{token}.*387'):
        decode_notes([60, token])


# write_midi and draw_piano_roll

def test_a_written_file_is_read_by_mido_with_the_same_times(tmp_path):
    mido = pytest.importorskip('mido')
    rng = random.Random(4)
    for trial in range(20):
        notes = canonical(random_notes(rng)) + [(200, 40_000, 70, 1)] * (trial % 2)
        (tmp_path / 'written.mid').write_bytes(write_midi(notes))
        file = mido.MidiFile(tmp_path / 'written.mid')
        assert file.type == 0 and len(file.tracks) == 1 and file.tracks[0][-1].type == 'end_of_track'
        assert [message.program for message in file.tracks[0] if message.type == 'program_change'] == [0]
        same_notes(notes_by_mido(tmp_path / 'written.mid'), notes)
        assert read_midi((tmp_path / 'written.mid').read_bytes()) == notes


def test_a_note_off_is_written_before_the_note_on_of_its_tick():
    data = write_midi([(1, 2, 60, 64), (0, 1, 62, 64), (0, 1, 60, 64), (0.9996, 1.0001, 61, 64), (1.0006, 2, 61, 1)])
    offs, ons = [0x80, 60, 64, 0, 0x80, 62, 64, 0], [0x90, 61, 64, 0, 0x90, 60, 64, 1, 0x80, 61, 64, 0, 0x90, 61, 1]
    assert bytes(offs + ons) in data and data.endswith(bytes([0, 0x80, 61, 64, 0, 0xFF, 0x2F, 0]))


def test_times_are_written_in_milliseconds_and_a_note_too_short_for_one_gets_one():
    assert read_midi(write_midi([(0.0012, 0.0568, 60, 1), (0.2, 0.2, 61, 127)])) == \
        [(0.001, 0.057, 60, 1), (0.2, 0.201, 61, 127)]


def test_a_piece_without_notes_and_one_of_24_hours_can_be_written_but_not_a_longer_one():
    assert read_midi(write_midi([])) == []
    assert read_midi(write_midi([(0, 86400, 60, 64)])) == [(0, 86400, 60, 64)]
    with pytest.raises(ValueError, match='86400'):
        write_midi([(0, 86400.01, 60, 64)])


@pytest.mark.parametrize('notes', [[], [(0, 0, 60, 64)], [(1, 2, 0, 1), (3, 4, 127, 127)]], ids=['none', 'one', 'two'])
def test_a_piano_roll_is_a_png_file_however_few_notes_there_are(tmp_path, notes):
    pytest.importorskip('matplotlib')
    draw_piano_roll(notes, tmp_path / 'roll.png')
    assert (tmp_path / 'roll.png').read_bytes().startswith(b'\x89PNG')


def test_the_picture_of_a_piano_roll_has_every_note_at_its_place_and_middle_c_is_c4(tmp_path, drawn):
    draw_piano_roll([(0, 1, 60, 20), (0.5, 3, 72, 120)], tmp_path / 'roll.png')
    [axes] = drawn[0].axes
    boxes = axes.collections[0]
    assert [[*path.vertices.min(0), *path.vertices.max(0)] for path in boxes.get_paths()] == [[0, 59.5, 1, 60.5], [0.5, 71.5, 3, 72.5]]
    soft, loud = boxes.get_facecolor()[:, 3]
    assert 0 < soft < loud <= 1
    assert {tick: label.get_text() for tick, label in zip(axes.get_yticks(), axes.get_yticklabels())}[60] == 'C4'
