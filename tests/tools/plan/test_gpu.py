# ruff: noqa: E501
"""Plans for NVIDIA cards: names, products in the compiled text, the roofline, a real compilation."""

import jax
import pytest

from infinity_jax.config import (
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity_jax.errors import UserError
from infinity_jax.inference.memory import GB
from infinity_jax.runtime.accelerators import GIB, PEAKS
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, deviceless_mesh, make_mesh
from infinity_jax.tools.plan import gpu_time, products
from infinity_jax.tools.plan.collectives import Collective
from infinity_jax.tools.plan.generation import (
    GENERATION,
    TEXT_ENCODER,
    GenerationPlan,
    PlannedProgram,
    generation_lines,
    generation_programs,
    plan_generation,
)
from infinity_jax.tools.plan.gpu_topology import (
    GpuTopology,
    lacks_tf32,
    plugin,
    target_config,
)
from infinity_jax.tools.plan.hlo_text import HloProgram
from infinity_jax.tools.plan.program_cost import Memory, ProgramCost
from infinity_jax.tools.plan.topology import devices_of, parse_topology
from infinity_jax.transformer import card_dtype
from infinity_jax.transformer.int8 import SCALE

# Cut down from what the CUDA plugin of jax 0.10.2 wrote for an H100, forms kept.
TEXT = """\
HloModule jit_f, is_scheduled=true

%gemm (parameter_0.6: bf16[4,256], parameter_1.6: bf16[256,512]) -> bf16[4,512] {
  %parameter_0.6 = bf16[4,256]{1,0} parameter(0)
  %parameter_1.6 = bf16[256,512]{1,0} parameter(1)
  ROOT %dot.4 = bf16[4,512]{1,0} dot(%parameter_0.6, %parameter_1.6), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update (parameter_0.7: bf16[8,512], parameter_1.7: bf16[4,512], parameter_2.7: bf16[9,256,512]) -> bf16[8,512] {
  %parameter_0.7 = bf16[8,512]{1,0} parameter(0)
  %parameter_1.7 = bf16[4,512]{1,0} parameter(1)
  %parameter_2.7 = bf16[9,256,512]{2,1,0} parameter(2)
  %bitcast.1 = bf16[8,512]{1,0} bitcast(%parameter_0.7)
  %slice.1 = bf16[1,4,512]{2,1,0} slice(%parameter_2.7), slice={[0:1], [0:4], [0:512]}
  %sum.1 = bf16[4,512]{1,0} add(%parameter_1.7, %slice.1)
  ROOT %dynamic-update-slice.1 = bf16[8,512]{1,0} dynamic-update-slice(%bitcast.1, %sum.1)
}

ENTRY %main (x: bf16[4,256]) -> bf16[8,512] {
  %x = bf16[4,256]{1,0} parameter(0)
  %w = bf16[256,512]{1,0} parameter(1)
  %cache = bf16[8,512]{1,0} parameter(2)
  %stack = bf16[9,256,512]{2,1,0} parameter(3)
  %image = f32[1,16,16,64]{3,2,1,0} parameter(4)
  %kernel = f32[128,3,3,64]{3,2,1,0} parameter(5)
  %q = bf16[2,144,4,64]{3,2,1,0} parameter(6)
  %gemm_fusion_dot.3 = bf16[4,512]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
  %cudnn-conv.1 = (f32[1,16,16,128]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, operand_precision={highest,highest}, custom_call_target="__cudnn$convForward"
  %attention.5 = (bf16[2,4,144,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", operand_layout_constraints={bf16[2,144,4,64]{3,2,1,0}, bf16[2,265,4,64]{3,2,1,0}, bf16[2,265,4,64]{3,2,1,0}}
  %cublas.1 = (f32[4,512]{1,0}, s8[0]{0}) custom-call(%y, %z), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %y = f32[4,256]{1,0} parameter(7)
  %z = f32[256,512]{1,0} parameter(8)
  ROOT %update_fusion = bf16[8,512]{1,0} fusion(%cache, %gemm_fusion_dot.3, %stack), kind=kLoop, calls=%update
}
"""
FLOPS = {
    'product bfloat16': 2 * 4 * 256 * 512,
    'convolution float32': 2 * 16 * 16 * 128 * 9 * 64,
    'attention bfloat16': 4 * 2 * 4 * 144 * 265 * 64,
    'product tf32': 2 * 4 * 256 * 512,
}


def lines():
    program = HloProgram(TEXT)
    return program, [e.instruction for e in program.executed()]


def test_names_of_cards():
    assert parse_topology('h100:8') == GpuTopology('h100', 1, 8)
    two = parse_topology('a100-80:2x8')
    assert two == GpuTopology('a100-80', 2, 8) and two.num_chips == 16 and two.name == 'a100-80:2x8'
    for wrong in ('h100:0', 'h100:2x8x1', 'h100:0x8'):
        with pytest.raises(UserError, match='CARD:HOSTSxCARDS'):
            parse_topology(wrong)


def test_products_are_found_by_kind_precision_and_flops():
    program, executed = lines()
    found = [p for line in executed for p in products.products_in(program, 'main', line)]
    assert {f'{p.kind} {p.precision}': p.flops for p in found} == FLOPS
    assert products.counted(program) == dict.fromkeys(FLOPS, 1)


@pytest.mark.parametrize(
    'dtype, attributes, wanted',
    [
        ('f32', 'operand_precision={high,high}', products.THREE_BFLOAT16),
        ('f32', '', products.TF32),
        ('f32', '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}', products.FLOAT32),
        ('f32', '"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}', products.TF32),
        ('f16', 'operand_precision={highest,highest}', products.FLOAT16),
        ('s8', '', products.OTHER),
    ],
)
def test_precision_is_that_of_the_operands(dtype, attributes, wanted):
    assert products.precision_of(dtype, attributes) == wanted


def test_an_update_in_place_and_a_part_of_a_stack_count_alone():
    program, executed = lines()
    update = next(line for line in executed if line.name == 'update_fusion')
    # The update written and its place read, the operand, the slice; neither cache nor stack.
    assert gpu_time.kernel_bytes(program, 'main', update) == (2 + 1 + 1) * 4 * 512 * 2


def test_a_kernel_takes_the_longer_of_work_and_memory():
    program, _ = lines()
    time = gpu_time.estimate_gpu_time(program, GpuTopology('h100', 1, 1), [0])
    peak, card = PEAKS['h100'], PEAKS['h100'].gpu
    convolution = FLOPS['convolution float32'] / card.fp32_flops
    gemm = 2 * (4 * 256 + 256 * 512 + 4 * 512) / card.memory_bandwidth
    cublas = 2 * gemm  # float32
    assert time.estimated == pytest.approx(convolution + gemm + cublas + 3 * gpu_time.START_SECONDS)
    assert gpu_time.flops_per_second(peak, card, products.THREE_BFLOAT16) == card.tf32_flops / 3


# Two copies of layers' weights that start at once, and kernels between their starts and ends.
COPIES = """\
HloModule jit_g, is_scheduled=true

%slice (parameter_0.1: bf16[9,4096,4096], parameter_1.1: s32[]) -> bf16[1,4096,4096] {
  %parameter_0.1 = bf16[9,4096,4096]{2,1,0} parameter(0)
  %parameter_1.1 = s32[] parameter(1)
  %view.1 = bf16[9,4096,4096]{2,1,0} bitcast(%parameter_0.1)
  ROOT %dynamic-slice.1 = bf16[1,4096,4096]{2,1,0} dynamic-slice(%view.1, %parameter_1.1, %parameter_1.1, %parameter_1.1)
}

ENTRY %main (stack: bf16[9,4096,4096]) -> bf16[64,512] {
  %stack = bf16[9,4096,4096]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %x = bf16[64,512]{1,0} parameter(2)
  %start.1 = ((bf16[9,4096,4096]{2,1,0}, s32[]), bf16[1,4096,4096]{2,1,0}, u32[]) fusion-start(%stack, %layer), kind=kLoop, calls=%slice
  %start.2 = ((bf16[9,4096,4096]{2,1,0}, s32[]), bf16[1,4096,4096]{2,1,0}, u32[]) fusion-start(%stack, %layer), kind=kLoop, calls=%slice
  %exchanged = bf16[64,512]{1,0} all-reduce(%x), replica_groups={{0}}
  %double = bf16[64,512]{1,0} add(%x, %x)
  %done.1 = bf16[1,4096,4096]{2,1,0} fusion-done(%start.1)
  %done.2 = bf16[1,4096,4096]{2,1,0} fusion-done(%start.2)
  ROOT %again = bf16[64,512]{1,0} add(%double, %double)
}
"""


def test_copies_take_the_bandwidth_that_kernels_leave():
    program, topology = HloProgram(COPIES), GpuTopology('h100', 1, 1)
    time = gpu_time.estimate_gpu_time(program, topology, [0])
    copy = 2 * 4096 * 4096 * 2 / topology.speed.memory_bandwidth  # the layer's weights alone
    kernel = 3 * 64 * 512 * 2 / topology.speed.memory_bandwidth
    start = gpu_time.START_SECONDS
    assert time.moved == pytest.approx(2 * (kernel + start) + 2 * copy - start)
    assert time.hidden == pytest.approx(start) and time.exposed == 0


def test_a_card_without_tf32_multiplies_in_float32():
    peak = PEAKS['t4']
    for precision in (products.FLOAT32, products.TF32, products.THREE_BFLOAT16):
        assert gpu_time.flops_per_second(peak, peak.gpu, precision) == peak.gpu.fp32_flops
    assert lacks_tf32(parse_topology('t4:1'))
    assert not any(map(lacks_tf32, (parse_topology('l4:1'), parse_topology('v5e:1x1'))))
    program, _ = lines()
    wanted = {name: 1 for name in FLOPS if 'tf32' not in name} | {'product float32': 1}
    assert products.counted(program, lacks_tf32=True) == wanted


def test_an_exchange_is_as_fast_as_the_slowest_link():
    topology, size = GpuTopology('h100', 2, 2), 2**30
    hosts = [0, 0, 1, 1]
    card = topology.speed
    inside = Collective('all-gather', size, (0, 1), False, 'main', 1)
    across = Collective('all-reduce', size, (0, 2), False, 'main', 1)
    seconds = gpu_time.exchange_seconds(inside, topology, hosts)
    assert seconds == pytest.approx(size / 2 / card.link_bandwidth)
    seconds = gpu_time.exchange_seconds(across, topology, hosts)
    assert seconds == pytest.approx(size / card.network_bandwidth)


def test_an_all_to_all_sends_what_is_for_the_others():
    text = """
ENTRY %main (p: f32[1048576]) -> f32[1048576] {
  %p = f32[1048576]{0} parameter(0)
  ROOT %all = f32[1048576]{0} all-to-all(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
"""
    topology = parse_topology('h100:8')
    time = gpu_time.estimate_gpu_time(HloProgram(text), topology, [0] * 8)
    assert time.exposed == pytest.approx(7 / 8 * 4 * 2**20 / topology.speed.link_bandwidth)


STARTED = """
%product (p: bf16[128,128]) -> bf16[128,128] {
  %p = bf16[128,128]{1,0} parameter(0)
  ROOT %dot = bf16[128,128]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[128,128]) -> bf16[128,128] {
  %x = bf16[128,128]{1,0} parameter(0)
  %start = ((bf16[128,128]{1,0}), bf16[128,128]{1,0}, u32[]) NAME-start(%x), calls=%product
  ROOT %done = bf16[128,128]{1,0} NAME-done(%start)
}
"""


@pytest.mark.parametrize('name', ['async', 'fusion'])
def test_a_product_that_is_started_counts_once(name):
    program = HloProgram(STARTED.replace('NAME', name))
    assert products.counted(program) == {'product bfloat16': 1}
    time = gpu_time.estimate_gpu_time(program, GpuTopology('h100', 1, 1), [0])
    assert time.estimated > 0 and time.moved == time.hidden == 0


SMALL = ModelConfigs(
    TransformerConfig(depth=2, width=64, num_heads=2, bits=4, text_channels=64, text_length=16),
    TokenizerConfig(4, base_channels=8, channel_multipliers=(1,), residual_blocks=1, norm_groups=4),
    TextConfig(64, width=64, num_layers=1, num_heads=2, head_dim=16, ffn_width=64, buckets=8),
    ScaleSchedule.free(((1, 1), (12, 12))),
)


def test_without_the_plugin_the_numbers_are_analytic(monkeypatch):
    from infinity_jax.tools.plan import generation

    monkeypatch.setattr(generation, 'can_compile', lambda topology: False)
    topology = parse_topology('t4:1')
    mesh = deviceless_mesh(MeshConfig(), 1)
    plan = plan_generation(SMALL, topology, mesh, 1, progress=lambda line: None)
    assert 'pip install --no-deps jax-cuda13-pjrt==' in generation_lines(plan, topology)[-1]


def test_a_plan_is_of_the_dtype_that_generate_would_choose(monkeypatch, capsys):
    from infinity_jax.tools.plan import generation

    card_dtype._say.cache_clear()
    planned = []

    def programs(configs, *args):
        planned.append(configs.transformer.dtype)
        return [((), ())] * 2

    monkeypatch.setattr(generation, 'can_compile', lambda topology: True)
    monkeypatch.setattr(generation, 'generation_programs', programs)
    monkeypatch.setattr(generation, 'compile_program', lambda *args: program(GB, GB).cost)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for card in ('t4:1', 'l4:1'):
        plan_generation(SMALL, parse_topology(card), mesh, 1, progress=lambda line: None)
    assert planned == ['float32', 'bfloat16']
    assert capsys.readouterr().err.startswith("dtype: float32 instead of the model's bfloat16")


def program(arguments, temporaries):
    memory = Memory(arguments, 10, 0, temporaries, 0)
    cost = ProgramCost(memory, memory.total, {}, {}, {}, None, (), 0.0)
    return PlannedProgram(1.0, cost)


@pytest.mark.parametrize(
    ('text_on_host', 'generating', 'needed'),
    [(False, 5 * GB, 9 * GB + 10), (True, 5 * GB, 7 * GB + 10), (True, GB, 5 * GB + 10)],
    ids=['on the device', 'on the host', 'encoding needs more'],
)
def test_memory_of_both_programs(text_on_host, generating, needed):
    programs = {TEXT_ENCODER: program(2 * GB, GB), GENERATION: program(2 * GB, generating)}
    plan = GenerationPlan(1, programs, text_on_host)
    assert plan.needed == needed
    card = parse_topology('rtx4060:1')
    line = generation_lines(plan, card)[-2]
    assert line.startswith(f'both programs       {needed / GIB:.2f} GiB per chip of 6.84')
    assert (', too much' in line) == (needed > card.usable_bytes)


def test_savings_are_planned():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, generation = generation_programs(SMALL, mesh, 1, QuantizationConfig('int8', 'int8'))
    kernel = generation.arguments[0].transformer['blocks']['ffn']['up']
    assert kernel['kernel'].dtype == jax.numpy.int8 and SCALE in kernel
    assert kernel[SCALE].sharding is not None
    for options in ({'text_on_host': True}, {'quantization': QuantizationConfig(weights='int8')}):
        with pytest.raises(UserError, match='h100:2 has 2 chips; --weights int8'):
            topology = parse_topology('h100:2')
            plan_generation(SMALL, topology, mesh, 1, lambda line: None, **options)


@pytest.mark.skipif(plugin() is None, reason="jax's CUDA plugin compiles")
def test_generation_compiles_with_cudnn_attention_and_a_decoder_in_tf32():
    topology = parse_topology('h100:1')
    mesh = make_mesh(MeshConfig(), devices_of(topology))
    plan = plan_generation(SMALL, topology, mesh, 1, progress=lambda line: None)
    cost = plan.programs['generation'].cost
    # Attention calls are cuDNN's, and all convolutions the decoder's.
    assert {'attention bfloat16', 'convolution tf32'} <= set(cost.products)
    assert 'convolution float32' not in cost.products
    assert 0 < cost.memory.total < topology.usable_bytes and cost.time.total > 0
    report = '\n'.join(generation_lines(plan, topology))
    assert 'h100:1: 1 images at once' in report and 'a roofline of the compiled text' in report


@pytest.mark.skipif(plugin() is None, reason="jax's CUDA plugin compiles")
def test_generation_compiles_for_a_card_before_ampere_in_float32():
    topology = parse_topology('t4:1')
    mesh = make_mesh(MeshConfig(), devices_of(topology))
    plan = plan_generation(SMALL, topology, mesh, 1, progress=lambda line: None)
    wanted = {TEXT_ENCODER: {'float32', 'float16'}, GENERATION: {'float32'}}
    for name, precisions in wanted.items():
        cost = plan.programs[name].cost
        assert {name.split()[1] for name in cost.products} == precisions
        assert 0 < cost.memory.total < topology.usable_bytes and cost.time.total > 0


def test_the_description_of_a_card_has_its_figures():
    text = target_config(PEAKS['h100'], PEAKS['h100'].gpu)
    assert 'core_count: 132' in text and 'cuda_compute_capability { major: 9 minor: 0 }' in text
    assert 'shared_memory_per_block_optin: 232448' in text
