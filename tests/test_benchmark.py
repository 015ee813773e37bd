"""The speed table: that it is about the same average everywhere. How fast it is, no test can say."""

import torch

import benchmark


def test_every_alternative_in_the_table_computes_the_same_average_and_causal_haar_keeps_nothing(capsys):
    benchmark.benchmark_operation((2, 32, 16), torch.float32, rounds=1, goal='<= 8')  # it compares their results itself
    benchmark.benchmark_memory()
    rows = [row for row in capsys.readouterr().out.splitlines() if 'compiled' not in row]  # that one only with a GPU
    assert [row.split()[0] for row in rows] == ['causal_haar', 'shifted', 'cumulative', 'FFT', 'banded', 'grouped', 'avg_pool1d',
                                                'memory']
    assert '<= 8' in rows[0] and rows[-1].split()[-2:] == ['0.0', '0']
