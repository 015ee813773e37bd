"""The model: that it is nanoGPT's, that it is causal, that it learns, how it generates."""

import math

import pytest
import torch

import wavelet_gpt
from wavelet_gpt import GPT, GPTConfig, causal_ema, causal_haar

TINY = dict(block_size=16, vocab_size=11, n_layer=3, n_head=2, n_embd=16)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**TINY, **changes})).eval()


def shaken(model):
    """Move every parameter away from its initial value, biases and LayerNorms too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def logits_by_hand(state, idx, config):
    """nanoGPT's arithmetic from its state_dict, written out in float64: no module, no fused kernel."""
    w = {name: value.double() for name, value in state.items()}

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * w[name + '.weight'] + w.get(name + '.bias', 0)

    def linear(x, name):
        return x @ w[name + '.weight'].T + w.get(name + '.bias', 0)

    T, C, nh = idx.size(1), config.n_embd, config.n_head
    x = w['transformer.wte.weight'][idx] + w['transformer.wpe.weight'][:T]
    for n in range(config.n_layer):
        h = f'transformer.h.{n}.'
        q, k, v = linear(norm(x, h + 'ln_1'), h + 'attn.c_attn').chunk(3, dim=-1)
        heads = []
        for a in range(nh):
            s = slice(a * C // nh, (a + 1) * C // nh)
            scores = q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(C // nh)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[..., s])
        x = x + linear(torch.cat(heads, dim=-1), h + 'attn.c_proj')
        z = linear(norm(x, h + 'ln_2'), h + 'mlp.c_fc')
        x = x + linear(z * 0.5 * (1 + torch.erf(z / math.sqrt(2))), h + 'mlp.c_proj')
    return norm(x, 'transformer.ln_f') @ w['lm_head.weight'].T


@pytest.mark.parametrize('bias', [True, False])
def test_the_plain_model_computes_nanogpt_from_the_same_weights(bias):
    model = shaken(make(wavelet='off', bias=bias))
    idx = torch.randint(11, (2, 16))
    torch.testing.assert_close(model(idx)[0].double(), logits_by_hand(model.state_dict(), idx, model.config), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
def test_the_parameter_names_and_shapes_are_nanogpts(bias):
    C, expected = 16, {'transformer.wte.weight': (11, 16), 'transformer.wpe.weight': (16, 16), 'lm_head.weight': (11, 16)}
    layers = {'ln_1': (C,), 'attn.c_attn': (3 * C, C), 'attn.c_proj': (C, C), 'ln_2': (C,), 'mlp.c_fc': (4 * C, C), 'mlp.c_proj': (C, 4 * C)}
    names = {f'transformer.h.{n}.{name}': shape for n in range(3) for name, shape in layers.items()} | {'transformer.ln_f': (C,)}
    for name, shape in names.items():
        expected[name + '.weight'] = shape
        if bias:
            expected[name + '.bias'] = shape[:1]
    for wavelet in ('off', 'on'):  # the wavelet adds no parameter and no entry
        model = make(wavelet=wavelet, bias=bias)
        assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
        assert model.lm_head.weight is model.transformer.wte.weight


def test_a_plain_checkpoint_loads_into_a_wavelet_model_and_back():
    plain, wavelet = make(wavelet='off'), make(seed=1, wavelet='on')
    idx = torch.randint(11, (1, 16))
    wavelet.load_state_dict(plain.state_dict(), strict=True)
    assert not torch.allclose(plain(idx)[0], wavelet(idx)[0])
    plain.load_state_dict(wavelet.state_dict(), strict=True)


def test_the_averages_stand_between_the_blocks_and_nowhere_else():
    model = shaken(make())
    idx = torch.randint(11, (2, 16))
    h = model.transformer
    x = h.wte(idx) + h.wpe.weight
    for n in range(3):
        x = h.h[n](x)
        if n < 2:
            x = causal_haar(x, model.kernel_size)
    torch.testing.assert_close(model(idx)[0], model.lm_head(h.ln_f(x)))


@pytest.mark.parametrize('wavelet, fraction', [(wavelet, fraction) for wavelet in ('on', 'off', 'learnable', 'ema')
                                               for fraction in (0.5, 1.0)] + [('past', 0.5)])  # past of all would hide t
def test_no_logit_depends_on_a_later_token_and_each_on_all_earlier_ones(wavelet, fraction):
    model = shaken(make(wavelet=wavelet, wavelet_fraction=fraction, n_head=1))
    x = model.transformer.wte(torch.randint(11, (1, 16))).detach().requires_grad_()
    hook = model.transformer.wte.register_forward_hook(lambda *_: x)
    logits = model(torch.zeros(1, 16, dtype=torch.long))[0]
    hook.remove()
    for t in range(16):
        gradient, = torch.autograd.grad(logits[0, t].square().sum(), x, retain_graph=True)
        assert (gradient[0, t + 1:] == 0).all() and (gradient[0, :t + 1].abs().sum(-1) > 0).all()


def test_learnable_kernels_begin_as_haar_and_each_place_has_its_own():
    haar, learnable = make(), make(wavelet='learnable')
    idx = torch.randint(11, (2, 16))
    learnable.load_state_dict(haar.state_dict(), strict=False)
    torch.testing.assert_close(learnable(idx)[0], haar(idx)[0])
    kernels = [p for name, p in learnable.named_parameters() if 'averages' in name]
    assert sum(p.numel() for p in kernels) == 2 * haar.kernel_size[haar.kernel_size > 1].sum()  # f(i) each, at two places
    assert len({id(p) for p in kernels}) == len(kernels) and all(p.requires_grad for p in kernels)


def test_mixed_precision_rounds_no_average(monkeypatch):
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    for wavelet in 'on', 'learnable', 'ema', 'past':
        model = make(wavelet=wavelet)
        exact = model.average(x, 1)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(model.average(x, 1), exact), wavelet


def test_initial_weights_are_those_of_gpt_2():
    model = make(n_layer=8, n_embd=64, bias=True)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 0.02 / 4 if name.endswith('c_proj.weight') else 0.02  # sqrt(2 * 8) = 4
            assert 0.9 * std < parameter.std() < 1.1 * std, name
        else:
            assert (parameter == ('ln_' in name and name.endswith('weight'))).all(), name


@pytest.mark.parametrize('where', ['embedding', 'attention', 'attn.c_proj', 'mlp'])
def test_dropout_is_in_every_place_where_gpt_2_has_it(monkeypatch, where):
    model = make(dropout=0.5, wavelet='off').train()
    idx = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(1))
    model.config.dropout = 0.5 * (where == 'embedding')
    for block in model.transformer.h:
        block.mlp.dropout = 0.5 * (where == 'mlp')
        block.attn.dropout = 0.5 * where.startswith('att')
    if where == 'attention':  # without that of what attention adds to the stream
        monkeypatch.setattr(wavelet_gpt.F, 'dropout', lambda x, *_: x)
    if where == 'attn.c_proj':  # without that of the attention itself
        attend = wavelet_gpt.F.scaled_dot_product_attention
        monkeypatch.setattr(wavelet_gpt.F, 'scaled_dot_product_attention', lambda q, k, v, dropout_p, is_causal:
                            attend(q, k, v, is_causal=is_causal))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    assert torch.equal(model.eval()(idx)[0], model(idx)[0])


def test_past_is_the_mean_of_the_steps_before_the_present_one_in_a_plain_loop():
    model = make(wavelet='past', n_embd=32).double()
    x = torch.randn(2, 16, 32, dtype=torch.double)
    expected = x.clone()
    for i, f in enumerate(model.kernel_size.tolist()):
        for t in range(16 if f > 1 else 0):
            expected[:, t, i] = x[:, max(0, t - f // 2):t, i].sum(dim=1) / (f // 2)  # zeros before the first step
    torch.testing.assert_close(model.average(x, 1), expected)


def test_past_at_level_1_alone_is_token_shift_of_half_the_coordinates():
    model, x = make(wavelet='past', wavelet_max_level=1), torch.randn(2, 16, 16)
    shifted = torch.cat((torch.zeros(2, 1, 8), x[:, :-1, 8:]), dim=1)
    assert torch.equal(model.average(x, 1), torch.cat((x[..., :8], shifted), dim=2))


def test_ema_is_the_plain_recursion_from_an_alpha_of_two_thirds_down():
    model = make(wavelet='ema', n_embd=32).double()
    alpha, x = model.alpha, torch.randn(2, 50, 32, dtype=torch.double)
    expected = torch.zeros_like(x)
    for t in range(50):
        expected[:, t] = alpha * x[:, t] + (1 - alpha) * (expected[:, t - 1] if t else 0)
    torch.testing.assert_close(causal_ema(x, alpha), expected)
    assert torch.equal(alpha[:16], torch.ones(16).double())
    torch.testing.assert_close(alpha[16:], torch.linspace(2 / 3, 2 / 17, 16).double())  # windows of 2 .. 16 steps


@pytest.mark.parametrize('wavelet', ['on', 'off'])
def test_an_untrained_model_guesses(wavelet):
    model = make(wavelet=wavelet, vocab_size=99, block_size=64, n_embd=64)
    idx, targets = torch.randint(99, (8, 64)), torch.randint(99, (8, 64))
    assert abs(model(idx, targets)[1].item() - math.log(99)) < 0.1


@pytest.mark.parametrize('wavelet', ['on', 'off'])
def test_one_batch_can_be_learnt_by_heart(wavelet):
    model = make(wavelet=wavelet, n_embd=32).train()
    idx = torch.randint(11, (4, 17))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_targets_of_minus_one_do_not_count():
    model = make()
    idx, targets = torch.randint(11, (2, 16)), torch.randint(11, (2, 16))
    counted = targets.clone()
    counted[:, 5:] = -1
    expected = torch.nn.functional.cross_entropy(model(idx)[0][:, :5].reshape(-1, 11), targets[:, :5].reshape(-1))
    torch.testing.assert_close(model(idx, counted)[1], expected)


@pytest.mark.parametrize('T', [0, 17])
@pytest.mark.parametrize('wavelet', ['on', 'off', 'learnable', 'ema', 'past'])
def test_a_sequence_of_no_token_or_longer_than_the_context_is_refused_by_its_length(wavelet, T):
    with pytest.raises(ValueError, match=f'{T} tokens.*block_size=16'):
        make(wavelet=wavelet)(torch.zeros(1, T, dtype=torch.long))


def test_every_contradiction_of_a_configuration_is_named_at_once():
    with pytest.raises(ValueError) as error:
        GPTConfig(n_embd=10, n_head=3, dropout=1.5, wavelet='of')
    assert all(word in str(error.value) for word in ('n_embd=10', 'n_head=3', 'dropout=1.5', "'of'"))


# --- generation


@pytest.mark.parametrize('wavelet', ['on', 'off'])
@pytest.mark.parametrize('prompt', [1, 15, 16, 40])
def test_generation_continues_prompts_shorter_and_longer_than_the_context(wavelet, prompt):
    model = make(wavelet=wavelet)
    idx = torch.randint(11, (3, prompt))
    out = model.generate(idx, 30)
    assert out.shape == (3, prompt + 30) and torch.equal(out[:, :prompt], idx) and 0 <= out.min() and out.max() < 11


def test_greedy_generation_takes_the_likeliest_token_each_time():
    model = shaken(make())
    idx = torch.randint(11, (2, 3))
    out = model.generate(idx, 10, temperature=0)
    for t in range(3, 13):
        assert torch.equal(out[:, t], model(out[:, :t])[0][:, -1].argmax(-1))
    assert torch.equal(model.generate(idx, 10, top_k=1), out)


def test_when_the_window_is_full_its_newer_half_begins_the_next_one():
    model = shaken(make())
    out = model.generate(torch.randint(11, (1, 16)), 12, temperature=0)
    assert out[0, 16] == model(out[:, :16])[0][0, -1].argmax()
    for t in range(17, 25):
        assert out[0, t] == model(out[:, 9:t])[0][0, -1].argmax()  # 9 .. 16: the newest 8 tokens


@pytest.mark.parametrize('changes', [dict(wavelet='on'), dict(wavelet='off'), dict(wavelet='learnable'), dict(wavelet='ema'),
                                     dict(wavelet='past'), dict(wavelet='past', wavelet_min_level=2, wavelet_max_level=3),
                                     dict(wavelet_fraction=1.0), dict(block_size=13), dict(wavelet='learnable', block_size=13)])
@pytest.mark.parametrize('prompt', [1, 40])
def test_the_cache_changes_no_logit_and_no_greedy_token(changes, prompt):
    model = shaken(make(**changes)).double()
    idx = torch.randint(11, (3, prompt))
    T = model.config.block_size
    assert torch.equal(model.generate(idx, 2 * T, temperature=0), model.generate(idx, 2 * T, temperature=0, use_cache=False))
    full, cache = torch.randint(11, (3, T)), model.new_cache(3)
    begin = min(prompt, T)
    torch.testing.assert_close(model(full[:, :begin], cache=cache)[0], model(full[:, :begin])[0])
    for t in range(begin, T):
        step = model(full[:, t:t + 1], cache=cache, begin=t)[0][:, 0]
        torch.testing.assert_close(step, model(full)[0][:, t])


def test_the_cache_follows_a_linear_filter_that_a_reader_puts_in_the_place_of_the_averages(monkeypatch):
    model = shaken(make()).double()
    alpha = torch.linspace(0.1, 1, model.config.n_embd)
    monkeypatch.setattr(wavelet_gpt, 'causal_haar', lambda x, *_: wavelet_gpt.causal_ema(x, alpha))
    idx = torch.randint(11, (2, 5))
    cache = model.new_cache(2)
    model(idx[:, :4], cache=cache)
    torch.testing.assert_close(model(idx[:, 4:], cache=cache, begin=4)[0], model(idx)[0][:, 4:])


def test_with_the_cache_a_token_costs_one_position_and_a_full_window_half_of_it():
    model, read = make(), []
    model.transformer.wte.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].size(1)))
    model.generate(torch.zeros(1, 4, dtype=torch.long), 30)
    assert read == [4] + [1] * 12 + [8] + [1] * 8 + [8] + [1] * 7


def test_what_a_model_has_generated_can_be_trained_on():
    model = make()
    text = model.generate(torch.zeros(2, 1, dtype=torch.long), 12)  # in inference mode, which must not reach the result
    model(text[:, :-1], text[:, 1:])[1].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sampling_follows_the_softmax_at_a_temperature_among_the_top_k():
    model = shaken(make())
    idx = torch.randint(11, (1, 4))
    torch.manual_seed(0)
    counts = torch.bincount(model.generate(idx.expand(20000, -1), 1, temperature=2.0, top_k=3)[:, -1], minlength=11) / 20000
    logits = model(idx)[0][0, -1] / 2.0
    expected = torch.where(logits >= logits.topk(3).values[-1], logits, -math.inf).softmax(-1)
    assert (counts - expected).abs().max() < 0.02 and (counts > 0).sum() <= 3


@pytest.mark.parametrize('arguments', [dict(temperature=-1), dict(temperature=math.inf), dict(temperature=math.nan), dict(top_k=0)])
def test_impossible_sampling_is_refused(arguments):
    with pytest.raises(ValueError, match='temperature'):
        make().generate(torch.zeros(1, 1, dtype=torch.long), 1, **arguments)


def test_a_tiny_temperature_and_a_top_k_of_one_among_ties_take_a_single_token():
    model = make()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits tie
    idx = torch.zeros(200, 1, dtype=torch.long)
    assert len(model.generate(idx, 1, top_k=1)[:, 1].unique()) == 1
    model = shaken(make())
    for temperature in 1e-40, 1e-300:
        assert torch.equal(model.generate(idx[:1], 8, temperature=temperature), model.generate(idx[:1], 8, temperature=0))


@pytest.mark.parametrize('tokens, cached', [(2, True), (1, False)])
def test_a_cache_is_continued_by_one_token_and_nothing_else(tokens, cached):
    model = make()
    cache = model.new_cache(1)
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match='begin=3 needs a cache and exactly one new token'):
        model(torch.zeros(1, tokens, dtype=torch.long), cache=cache if cached else None, begin=3)


@pytest.mark.parametrize('wavelet', ['learnable', 'ema'])
def test_a_variant_of_averages_with_nothing_to_average_is_refused(wavelet):
    for fraction in (0.0, 0.01):  # 0.01 of 16 coordinates is none
        with pytest.raises(ValueError, match=f'wavelet_fraction={fraction} leaves no coordinate'):
            GPTConfig(**TINY, wavelet=wavelet, wavelet_fraction=fraction)


def test_one_block_alone_has_no_place_for_the_average():
    with pytest.raises(ValueError, match='n_layer=1 leaves no place'):
        GPTConfig(n_layer=1)
    GPTConfig(n_layer=1, wavelet='off')


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match='empty'):
        make().generate(torch.zeros(1, 0, dtype=torch.long), 1)


def test_of_a_prompt_longer_than_the_context_the_newest_tokens_are_read():
    model = shaken(make())
    idx = torch.randint(11, (4, 40))
    assert torch.equal(model.generate(idx, 1, temperature=0)[:, 40], model(idx[:, -16:])[0][:, -1].argmax(-1))


def test_a_context_of_one_token_generates_too():
    model = shaken(make(block_size=1, wavelet='off'))
    out = model.generate(torch.zeros(1, 1, dtype=torch.long), 5, temperature=0)
    assert torch.equal(out[0, 1:], model(out[0, :-1, None])[0][:, -1].argmax(-1))


def test_a_top_k_larger_than_the_vocabulary_leaves_nothing_out():
    model, idx, drawn = shaken(make()), torch.zeros(50, 1, dtype=torch.long), []
    for top_k in (None, 99):
        torch.manual_seed(0)
        drawn.append(model.generate(idx, 3, top_k=top_k))
    assert torch.equal(*drawn)


def test_without_the_cache_all_of_the_window_is_read_for_every_token():
    model, read = make(), []
    model.transformer.wte.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].size(1)))
    model.generate(torch.zeros(1, 4, dtype=torch.long), 15, use_cache=False)
    assert read == [*range(4, 17), 8, 9]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_the_exponential_average_of_every_float_type_comes_back_as_itself(dtype):
    assert causal_ema(torch.ones(1, 4, 2, dtype=dtype), torch.tensor([1, 0.5])).dtype == dtype
