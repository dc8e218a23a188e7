# ruff: noqa: E501
"""A compiled TPU program in short: a loop of four turns, an asynchronous collective, a kernel.

Cut down from what libtpu 0.0.42 wrote for a scan on v5e:4x4, names and forms kept.
"""

TEXT = """\
HloModule jit_f, is_scheduled=true, num_partitions=16

%add.1 (lhs: bf16[], rhs: bf16[]) -> bf16[] {
  %lhs = bf16[] parameter(0)
  %rhs = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%lhs, %rhs)
}

%starting (param_0.60: bf16[1,128,2048]) -> (bf16[1,128,2048], bf16[1,2048,2048], u32[]) {
  %param_0.60 = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.21 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.60), channel_id=9, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={1}
  ROOT %custom-call.4 = (bf16[1,128,2048]{2,1,0}, bf16[1,2048,2048]{2,1,0}, /*index=2*/u32[]{:S(2)}) custom-call(%all-gather.21), custom_call_target="AsyncCollectiveStart"
}

%going_on (param_0.65: bf16[1,128,2048]) -> bf16[1,2048,2048] {
  %param_0.65 = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.23 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.65), channel_id=9, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={1}
}

%ending (param_0.68: bf16[1,128,2048]) -> bf16[1,2048,2048] {
  %param_0.68 = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.25 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.68), channel_id=9, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={1}
  ROOT %custom-call.6 = bf16[1,2048,2048]{2,1,0} custom-call(%all-gather.25), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (param: bf16[2048,2048]) -> bf16[128,2048] {
  %param.9 = bf16[2048,2048]{1,0} parameter(0)
  %all-reduce.9 = bf16[2048,2048]{1,0} all-reduce(%param.9), channel_id=5, replica_groups=[4,4]<=[4,4]T(1,0), to_apply=%add.1
  ROOT %slice.9 = bf16[128,2048]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={128,2048}
}

%condition (wide.param.1: (s32[], bf16[256,2048])) -> pred[] {
  %constant.54 = s32[]{:T(128)} constant(4)
  %wide.param.1 = (s32[]{:T(128)}, bf16[256,2048]{1,0}) parameter(0)
  %get-tuple-element.218 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.218, %constant.54), direction=LT
}

%body (wide.param.2: (s32[], bf16[256,2048])) -> (s32[], bf16[256,2048]) {
  %wide.param.2 = (s32[]{:T(128)}, bf16[256,2048]{1,0}) parameter(0)
  %start = (bf16[1,128,2048]{2,1,0}, bf16[1,2048,2048]{2,1,0}, u32[]) fusion(%wide.param.2), kind=kCustom, calls=%starting
  %fusion.24 = bf16[1,2048,2048]{2,1,0} fusion(%start), kind=kOutput, calls=%going_on, backend_config={"window_config":{"estimated_cycles":"45000"}}
  %done = bf16[1,2048,2048]{2,1,0} fusion(%fusion.24), kind=kCustom, calls=%ending
  %splash_mha_fwd_residuals.1 = bf16[2,16,1024,128]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/splash_mha_fwd_residuals/pallas_call"}
  %scattered = bf16[128,2048]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.1 = (s32[], bf16[256,2048]{1,0}) tuple(%wide.param.2, %scattered)
}

ENTRY %main.6_spmd (param.1: bf16[256,2048]) -> bf16[256,2048] {
  %param.1 = bf16[256,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %copy.4 = bf16[256,2048]{1,0} copy(%param.1)
  %while.30 = (s32[], bf16[256,2048]{1,0}) while(%copy.4), condition=%condition, body=%body
  %fusion.10 = bf16[256,2048]{1,0} fusion(%while.30), kind=kOutput, calls=%add.1, backend_config={"window_config":{"estimated_cycles":"150000"}}
  ROOT %all-reduce.1 = bf16[256,2048]{1,0} all-reduce(%fusion.10), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add.1
}
"""
