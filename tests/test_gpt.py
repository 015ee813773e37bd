"""The model: that it is nanoGPT's, that it is causal, that it learns, how it generates."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F

import wavelet_gpt
from wavelet_gpt import GPT, GPTConfig, causal_ema, causal_haar

T, C, V = 16, 16, 11
WAVELETS = ['on', 'off', 'learnable', 'ema', 'past']

def make(**settings):
    """A small GPT with every parameter moved away from its initial value."""
    torch.manual_seed(0)
    tiny = dict(block_size=T, vocab_size=V, n_layer=3, n_head=2, n_embd=C)
    model = GPT(GPTConfig(**{**tiny, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model

def tokens(*shape):
    return torch.randint(V, shape)

# --- the weights, and what is computed from them ---

def logits_by_hand(state, idx, config, read=lambda x: x):
    """nanoGPT's arithmetic in float64, from all entries of its state_dict and no others."""
    w = {name: value.double() for name, value in state.items()}

    def norm(x, name):
        var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * w.pop(name + '.weight') + w.pop(name + '.bias', 0)

    def linear(x, name):
        return x @ w.pop(name + '.weight').T + w.pop(name + '.bias', 0)

    def attend(q, k, v):
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(2))
        future = torch.ones(idx.size(1), idx.size(1)).triu(1) > 0
        return scores.masked_fill(future, -math.inf).softmax(dim=2) @ v

    x = w.pop('transformer.wte.weight')[idx] + w.pop('transformer.wpe.weight')[:idx.size(1)]
    for n in range(config.n_layer):
        h = f'transformer.h.{n}.'
        q, k, v = linear(read(norm(x, h + 'ln_1')), h + 'attn.c_attn').chunk(3, dim=2)
        heads = zip(*(part.chunk(config.n_head, dim=2) for part in (q, k, v)))
        y = torch.cat([attend(*head) for head in heads], dim=2)
        x = x + linear(y, h + 'attn.c_proj')
        z = linear(read(norm(x, h + 'ln_2')), h + 'mlp.c_fc')
        z = z * (1 + torch.erf(z / math.sqrt(2))) / 2
        x = x + linear(z, h + 'mlp.c_proj')
    logits = linear(norm(x, 'transformer.ln_f'), 'lm_head')
    assert not w
    return logits

@pytest.mark.parametrize('bias', [True, False])
def test_the_plain_model_has_nanogpts_weights_and_computes_nanogpts_logits(bias):
    model = make(wavelet='off', bias=bias).double()
    idx = tokens(2, T)
    expected = logits_by_hand(model.state_dict(), idx, model.config)
    torch.testing.assert_close(model(idx)[0], expected)

@pytest.mark.parametrize('wavelet', ['on', 'ema', 'past'])
def test_the_averages_add_no_parameter_and_no_entry(wavelet):
    model, plain = make(wavelet=wavelet), make(wavelet='off')
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    model.load_state_dict(plain.state_dict(), strict=True)

def test_the_initial_weights_are_the_same_as_ever():
    torch.manual_seed(1337)
    values = GPT(GPTConfig(wavelet='on')).state_dict().values()
    data = b''.join(value.numpy().tobytes() for value in values)
    assert hashlib.sha256(data).hexdigest().startswith('605bd9287e4052bd')
    model = GPT(GPTConfig(bias=True))
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith('bias'))

@pytest.mark.parametrize('wavelet', WAVELETS)
def test_an_untrained_model_guesses(wavelet):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=99, n_embd=64, wavelet=wavelet))
    idx, targets = torch.randint(99, (2, 8, 64))
    assert abs(model(idx, targets)[1].item() - math.log(99)) < 0.1

@pytest.mark.parametrize('wavelet', ['on', 'off'])
def test_one_batch_can_be_learnt_by_heart(wavelet):
    model = make(wavelet=wavelet, n_layer=2, n_embd=32).train()
    idx = tokens(4, T + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(80):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1

def test_targets_of_minus_one_do_not_count():
    model = make()
    idx, targets = tokens(2, 2, T)
    expected = F.cross_entropy(model(idx)[0][:, :5].flatten(0, 1), targets[:, :5].flatten())
    targets[:, 5:] = -1
    torch.testing.assert_close(model(idx, targets)[1], expected)

def test_dropout_is_on_in_training_and_off_in_eval():
    model = make(dropout=0.5)
    idx = tokens(2, T)
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])

@pytest.mark.parametrize('wavelet', WAVELETS)
def test_autocast_rounds_the_blocks_a_little_and_the_averages_not_at_all(wavelet):
    model = make(wavelet=wavelet)
    idx = tokens(2, T)
    x = torch.randn(2, T, C)

    def averages():  # of past in a block, of the others between two
        return model.average(model.transformer.h[0].read(x, 'x1', None), 1)
    with torch.autocast('cpu', torch.bfloat16):
        loss, rounded = model(idx, idx)[1], averages()
    loss.backward()
    torch.testing.assert_close(loss, model(idx, idx)[1], rtol=0.02, atol=0.02)
    assert torch.equal(rounded, averages())

@pytest.mark.parametrize('name, value', [
    ('n_embd', 30), ('wavelet', 'of'), ('n_layer', 1), ('wavelet_max_level', 9)])
def test_a_configuration_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError):
        GPTConfig(**{name: value})

@pytest.mark.parametrize('wavelet', ['past', 'ema', 'learnable'])
def test_the_variants_refuse_an_f_of_a_readers_own_that_does_not_ascend(wavelet, monkeypatch):
    monkeypatch.setattr(wavelet_gpt, 'kernel_sizes', lambda n_embd, *_: [1, 2, 1, 4] * 8)
    GPT(GPTConfig(n_embd=32))
    with pytest.raises(AssertionError):
        GPT(GPTConfig(n_embd=32, wavelet=wavelet))

@pytest.mark.parametrize('length', [0, T + 1])
def test_a_sequence_of_no_token_or_longer_than_the_context_is_refused(length):
    with pytest.raises(ValueError):
        make()(tokens(1, length))

# --- the averages between the blocks ---

@pytest.mark.parametrize('wavelet', WAVELETS)
def test_no_logit_depends_on_a_later_token_and_each_on_all_earlier_ones(wavelet):
    model = make(wavelet=wavelet)
    x = model.transformer.wte(tokens(1, T)).detach().requires_grad_()
    model.transformer.wte.register_forward_hook(lambda *_: x)
    logits = model(tokens(1, T))[0]
    for t in range(T):
        slopes, = torch.autograd.grad(logits[0, t].square().sum(), x, retain_graph=True)
        assert (slopes[0, t + 1:] == 0).all()
        assert (slopes[0, :t + 1].abs().sum(dim=1) > 0).all()

def test_the_averages_stand_between_the_blocks_and_nowhere_else():
    model = make()
    idx = tokens(2, T)
    h = model.transformer
    x = h.h[0](h.wte(idx) + h.wpe.weight)
    for block in h.h[1:]:
        x = block(causal_haar(x, model.config.kernel_sizes()))
    torch.testing.assert_close(model(idx)[0], model.lm_head(h.ln_f(x)))

def test_past_is_the_plain_model_where_blocks_read_means_of_the_steps_before_the_present_one():
    def read(x):
        y = x.clone()
        for i, window in enumerate([1, 1, 1, 1, 2, 2, 4, 8], start=C // 2):
            for t in range(T):
                y[:, t, i] = x[:, max(0, t - window):t, i].sum(dim=1) / window
        return y
    model = make(wavelet='past').double()
    idx = tokens(2, T)
    expected = logits_by_hand(model.state_dict(), idx, model.config, read)
    torch.testing.assert_close(model(idx)[0], expected)

@pytest.mark.parametrize('settings, counts', [
    (dict(n_embd=128, block_size=512), {1: 64, 2: 32, 4: 16, 8: 8, 16: 4, 32: 2, 64: 1, 128: 1}),
    (dict(n_embd=28, wavelet_max_level=3), {1: 14, 2: 7, 4: 4, 8: 3})])
def test_each_longer_window_of_past_has_half_of_what_is_left(settings, counts):
    sizes = GPTConfig(wavelet='past', **settings).kernel_sizes()
    assert sizes == [f for f, count in counts.items() for _ in range(count)]

def test_ema_is_the_plain_recursion_with_alpha_falling_from_1_to_0():
    x = torch.randn(2, 50, 5, dtype=torch.double)
    alpha = torch.tensor([1, 1, 3 / 4, 2 / 4, 1 / 4])  # 1 leaves a coordinate alone
    expected = alpha * x
    for t in range(1, 50):
        expected[:, t] += (1 - alpha) * expected[:, t - 1]
    torch.testing.assert_close(causal_ema(x, [1, 1, 2, 4, 8]), expected)

def test_learnable_begins_as_haar_and_its_parameters_are_f_times_the_weights():
    model = GPT(GPTConfig(block_size=T, n_embd=C, wavelet='learnable'))
    x = torch.randn(2, T, C)
    torch.testing.assert_close(model.average(x, 1), causal_haar(x, model.kernel_size))
    pairs = next(model.kernels.parameters())  # those of two steps, the newest is last
    pairs.data[:] = torch.tensor([0.5, 3])
    first = x[..., C // 2]  # the first coordinate that is averaged
    expected = 3 / 2 * first[:, 1:] + 0.5 / 2 * first[:, :-1]
    torch.testing.assert_close(model.average(x, 1)[:, 1:, C // 2], expected)

# --- generation ---

def my_filter(x, sizes):
    """Causal and not linear: the largest value so far."""
    return x.cummax(dim=1).values

@pytest.mark.parametrize('settings', [
    *(dict(wavelet=wavelet) for wavelet in WAVELETS), dict(wavelet_fraction=1.0),
    dict(wavelet='past', wavelet_fraction=0.0), dict(block_size=13), 'mine'], ids=str)
def test_the_cache_changes_no_logit_and_no_token(settings, monkeypatch):
    if settings == 'mine':
        monkeypatch.setattr(wavelet_gpt, 'causal_haar', my_filter)
        settings = {}
    model = make(n_layer=2, **settings).double()
    size = model.config.block_size
    for prompt in (1, size, 2 * size + 3):
        idx = tokens(2, prompt)
        cached, plain = (model.generate(idx, size + 4, temperature=0, use_cache=use_cache)
                         for use_cache in (True, False))
        assert torch.equal(cached, plain)
    idx, cache = tokens(2, size), [{}, {}]
    pieces = (idx[:, :5], *idx[:, 5:].split(1, dim=1))
    logits = [model(piece, kv_cache=cache)[0] for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(idx)[0])

@pytest.mark.parametrize('use_cache', [True, False])
def test_each_token_is_the_likeliest_and_a_full_context_keeps_its_newer_half(use_cache):
    model = make()
    idx = tokens(2, T + 4)  # too long: the newest T are used
    out = model.generate(idx, 12, temperature=0, use_cache=use_cache)
    for t in range(T + 4, T + 16):
        begin = 4
        while t - begin > T:
            begin += T + 1 - T // 2
        assert torch.equal(out[:, t], model(out[:, begin:t])[0][:, -1].argmax(dim=-1))
    assert torch.equal(model.generate(idx, 12, top_k=1, use_cache=use_cache), out)

@pytest.mark.parametrize('top_k', [None, 3, 99])
def test_sampling_follows_the_softmax_at_a_temperature_among_the_top_k(top_k):
    model = make()
    idx = tokens(1, 4)
    out = model.generate(idx.expand(10000, -1), 1, temperature=2.0, top_k=top_k)[:, -1]
    logits = model(idx)[0][0, -1] / 2.0
    logits[logits.argsort(descending=True)[top_k or V:]] = -math.inf
    shares = out.bincount(minlength=V) / 10000
    torch.testing.assert_close(shares, logits.softmax(dim=0), atol=0.02, rtol=0)
