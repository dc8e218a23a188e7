import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TEXT, TOKENIZER, TRANSFORMER

from infinity_jax import cli, sharding
from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.tools.bench import inference as bench_inference
from infinity_jax.tools.bench import stage as bench
from infinity_jax.tools.bench import train as bench_train
from infinity_jax.tools.bench.inference import generation_stages, text_stage
from infinity_jax.tools.bench.products import BareProducts, products_of, total_flops
from infinity_jax.tools.bench.stage import Timing, take_turns
from infinity_jax.tools.bench.workload import Workload, schedule_of
from infinity_jax.transformer.attention_ops import attend

WORKLOAD = Workload('tiny', '1.000', '0.06M', 1, 'float32', 3.0, 8, text_encoder=False)
SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2)))


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_are_found_in_loops_and_calls_in_order():
    def program(x, stack, q, k):
        x, _ = jax.lax.scan(lambda x, w: (jax.jit(jnp.matmul)(x, w), None), x, stack)
        scores = jnp.einsum('blnh,bsnh->bnls', q, k)
        return x.sum() + scores.sum() + (x.T @ x).sum()

    loop, straight = products_of(
        program, shape(5, 8), shape(3, 8, 8), shape(2, 5, 4, 6), shape(2, 7, 4, 6)
    )
    assert loop.times == 3 and [p.right for p in loop.products] == [(8, 8)]
    assert loop.flops == 3 * 2 * 5 * 8 * 8
    scores, square = straight.products
    assert (scores.left, scores.right) == ((8, 5, 6), (8, 6, 7)) and not scores.own_right
    assert scores.flops == 2 * 2 * 4 * 5 * 7 * 6
    assert square.flops == 2 * 8 * 8 * 5
    assert total_flops((loop, straight)) == 1920 + 3360 + 640


def test_kernels_have_no_products():
    q_BLNH = shape(1, 256, 1, 128)

    def attention(q_BLNH, weights):
        return attend(q_BLNH @ weights, q_BLNH, q_BLNH, scale=1.0, implementation='splash')

    (group,) = products_of(attention, q_BLNH, shape(128, 128))
    assert [product.right for product in group.products] == [(128, 128)]


def test_convolutions_count_by_what_they_compute():
    """A plain decoder has 615.5 GFLOP at 256²; four phases make 4/9 of its upsampling."""
    config = TokenizerConfig(bits=32)
    decode = lambda params, x: Autoencoder(config).apply({'params': params}, x, method='decode')
    groups = products_of(decode, tokenizer_shapes(config), shape(1, 16, 16, 32))
    upsampling = 2 * 9 * (512**2 * (32**2 + 64**2 + 128**2) + 256**2 * 256**2)
    assert total_flops(groups) == pytest.approx(615_514_112_000 - upsampling * 5 / 9, rel=1e-3)


def test_bare_products_run_all_of_them():
    groups = products_of(lambda x, w: (x @ w) @ w.T, shape(5, 8), shape(8, 4))
    bare = BareProducts(groups)
    assert jnp.isfinite(bare())
    text = bare._calls[0][0].lower(jnp.zeros(()), 0, *bare._calls[0][1][0]).as_text()
    assert text.count('dot_general') == 2


def test_functions_take_turns():
    calls = []
    turns = take_turns(
        {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in 'ab'}, 2, 1, 'x'
    )
    assert calls == ['a', 'b'] * 4
    assert len(turns['a'].wall) == len(turns['a'].cpu) == 2


def test_a_timing_is_the_median_between_the_fastest_and_the_slowest_call():
    timing = Timing(first=9.0, wall=(3.0, 1.0, 2.5), cpu=(6.0, 4.0, 5.0))
    assert (timing.seconds, timing.spread, timing.cpu_seconds) == (2.5, (1.0, 3.0), 4.0)


@pytest.mark.parametrize(
    ('what', 'stages'),
    [
        ('generate', {'transformer', 'decoder'}),
        ('tokenizer', {'encoder', 'decoder'}),
        ('train', {'train'}),
    ],
)
def test_bench_writes_what_it_says(what, stages, tmp_path, monkeypatch, capsys):
    for module in (bench_inference, bench_train):
        monkeypatch.setattr(module, 'preset', lambda name, precision: (TRANSFORMER, TOKENIZER))
    small = classmethod(lambda cls, ratio, budget: SCHEDULE)
    monkeypatch.setattr(ScaleSchedule, 'for_image', small)
    monkeypatch.setitem(bench.LARGE_EDGE, 'cpu', 64)
    files = {name: tmp_path / name for name in ('out.json', 'out.png', 'trace')}
    cli.main(
        f'bench {what} --preset tiny --precision float32 --text-length 8 --no-text-encoder '
        f'--repeats 2 --json {files["out.json"]} --plot {files["out.png"]} '
        f'--profile {files["trace"]}'.split()
    )
    report = json.loads(files['out.json'].read_text())
    assert set(report['stages']) == stages
    for stage in report['stages'].values():
        wanted = {'seconds', 'bare_seconds', 'fraction_of_bare', 'fraction_of_peak'}
        assert wanted <= set(stage) and all(stage[name] > 0 for name in wanted)
        ratio = stage['bare_seconds'] / stage['seconds']
        assert stage['fraction_of_bare'] == pytest.approx(ratio)
    assert report['peak_memory'] > 1e6
    assert report['images_per_second'] == report['pictures_per_second']  # the former name
    tokens = report['workload']['batch'] * SCHEDULE.num_tokens
    for name in stages & {'transformer', 'train'}:
        rate = tokens / report['stages'][name]['seconds']
        assert report['tokens_per_second'] == pytest.approx(rate)
    assert files['out.png'].stat().st_size > 1000 and any(files['trace'].rglob('*.pb'))
    assert 'large product ran at' in capsys.readouterr().out


@pytest.fixture
def tiny(monkeypatch):
    """Every preset is the tiny model on a small schedule."""

    def preset(name, precision):
        return dataclasses.replace(TRANSFORMER, dtype=precision), TOKENIZER

    for module in (bench_inference, bench_train):
        monkeypatch.setattr(module, 'preset', preset)
    small = classmethod(lambda cls, ratio, budget: SCHEDULE)
    monkeypatch.setattr(ScaleSchedule, 'for_image', small)
    monkeypatch.setitem(bench.LARGE_EDGE, 'cpu', 64)


def test_bench_on_several_devices_leaves_out_the_products_of_one(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, 'chips', lambda devices: devices)
    command = 'bench generate --preset tiny --precision float32 --text-length 8 --repeats 1 '
    command += f'--no-text-encoder --json {tmp_path / "out.json"} --plot {tmp_path / "out.png"} '
    cli.main(f'{command} --batch 4 --devices 2'.split())
    report = json.loads((tmp_path / 'out.json').read_text())
    assert report['devices'] == report['mesh']['data'] == 2
    for stage in report['stages'].values():
        assert stage['fraction_of_peak'] > 0 and 'bare_seconds' not in stage
    table = capsys.readouterr().out
    assert 'generate: 2 x cpu' in table and f'{"-":>9}' * 3 in table
    with pytest.raises(SystemExit):
        cli.main(f'{command} --batch 3 --devices 2'.split())
    assert '--batch is 3; wanted a multiple of 2, for 2 shares' in capsys.readouterr().err


def test_cpu_devices_share_the_cores_that_the_bare_products_use(tiny, tmp_path):
    assert bench.chips(8) == 1
    command = 'bench train --preset tiny --precision float32 --text-length 8 --repeats 1 '
    cli.main(f'{command} --batch 8 --json {tmp_path / "out.json"}'.split())
    report = json.loads((tmp_path / 'out.json').read_text())
    assert report['devices'] == jax.device_count() == 8  # as training has in this process
    assert report['stages']['train']['bare_seconds'] > 0


@pytest.mark.numeric
@pytest.mark.parametrize('axes', [{'data': 2}, {'data': 1, 'tensor': 2}])
def test_several_devices_generate_what_one_does(axes, tiny):
    mesh = sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[:2])
    workload = dataclasses.replace(WORKLOAD, batch=4)
    for one, several in zip(
        generation_stages(workload), generation_stages(workload, mesh), strict=True
    ):
        assert (np.asarray(one.run()) == np.asarray(several.run())).all(), one.name


@pytest.mark.numeric
def test_several_devices_train_as_one_does(tiny, monkeypatch):
    losses = []
    monkeypatch.setattr(
        bench_train, 'measure', lambda stages, **_: losses.append(float(stages[0].run()['loss']))
    )
    workload = dataclasses.replace(WORKLOAD, batch=4)
    axes = sharding.MeshConfig(data=1, fsdp=2)
    bench_train.bench_train(workload)
    bench_train.bench_train(workload, sharding.make_mesh(axes, jax.devices()[:2]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_adapters_are_trained_over_weights_in_the_dtype_of_their_products(tiny, monkeypatch):
    frozen, stages, make = [], [], bench_train.random_params

    def record(*args):
        frozen.append(make(*args))
        return frozen[0]

    monkeypatch.setattr(bench_train, 'random_params', record)
    monkeypatch.setattr(bench_train, 'measure', lambda found, **_: stages.extend(found))
    bench_train.bench_train(dataclasses.replace(WORKLOAD, batch=2, lora=2, precision='bfloat16'))
    (transformer,) = frozen
    assert transformer['blocks']['ffn']['up']['kernel'].dtype == jnp.bfloat16
    updates = [p for g in stages[0].groups for p in g.products if p.left[-1] == p.right[-2] == 2]
    assert updates  # A B of rank 2


def test_products_are_found_where_programs_have_options_of_the_chip(monkeypatch):
    """Of the functions without their jit, which could not be traced within another."""
    monkeypatch.setattr(sharding, 'target_kind', lambda: 'TPU v5 lite')
    small = classmethod(lambda cls, ratio, budget: SCHEDULE)
    monkeypatch.setattr(ScaleSchedule, 'for_image', small)
    stages = []
    monkeypatch.setattr(bench_inference, 'preset', lambda *_: (TRANSFORMER, TOKENIZER))
    monkeypatch.setattr(bench_inference, 'measure', lambda found, **options: stages.extend(found))
    bench_inference.bench_generate(WORKLOAD)
    bench_inference.bench_tokenizer(WORKLOAD)
    assert [stage.name for stage in stages] == ['transformer', 'decoder', 'encoder', 'decoder']
    assert all(total_flops(stage.groups) > 0 for stage in stages)


def test_the_demo_trains_its_text_encoder_on_its_own_grids(monkeypatch):
    measured = []
    monkeypatch.setattr(bench_train, 'measure', lambda found, **options: measured.extend(found))
    workload = dataclasses.replace(WORKLOAD, preset='demo', batch=2, text_length=512)
    bench_train.bench_train(workload)
    (stage,) = measured
    assert schedule_of(workload).num_tokens == 85
    texts = [p for group in stage.groups for p in group.products if p.left == (2 * 24, 128)]
    assert texts  # 24 tokens of each text go through the encoder


def test_the_text_stage_runs_the_encoder_on_prompts_of_the_asked_length(monkeypatch):
    monkeypatch.setattr(
        bench_inference, 'TextConfig', lambda: dataclasses.replace(TEXT, vocab_size=2)
    )
    (stage,) = text_stage(WORKLOAD)
    assert stage.name == 'text' and stage.run().shape == (1, 8, TEXT.width)
    # Of a layer: four projections, two products of attention, three of the gated FFN.
    heads = TEXT.num_heads * TEXT.head_dim
    kernels = 4 * TEXT.width * heads + 3 * TEXT.width * TEXT.ffn_width
    assert total_flops(stage.groups) == 2 * 8 * (kernels + 2 * 8 * heads)


def test_unknown_presets_and_counts_are_user_errors():
    with pytest.raises(UserError, match="unknown preset 'huge'; choose one of 125m"):
        generation_stages(Workload(**{**vars(WORKLOAD), 'preset': 'huge'}))
    args = cli.build_parser().parse_args(['bench', 'generate', '--batch', '0'])
    with pytest.raises(UserError, match='--batch is 0; wanted 1 or more'):
        args.run(args)


def test_memory_is_0_where_the_system_keeps_no_figure(monkeypatch):
    assert bench.peak_memory() > 10**7
    monkeypatch.setitem(sys.modules, 'resource', None)  # as on Windows
    assert bench.peak_memory() == 0
