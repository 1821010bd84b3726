"""What a trace says ran where; on GPUs from a made-up one, since no GPU is needed to read it."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise

import pytest
from fabricated_trace import AUTOGRAD, MAIN, NETWORK, Trace, on_cuda

from pretrain.errors import PretrainError
from pretrain.profile import kinds
from pretrain.profile.trace import read_trace, take_apart


def times(trace: Trace, *fields: str) -> dict[tuple[str, ...], float]:
    """Microseconds by some fields of where they went."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for piece in take_apart(trace.json()).slices:
        sums[tuple(getattr(piece.where, field) for field in fields)] += piece.end - piece.start
    return dict(sums)


def test_time_of_the_device_goes_to_what_launched_it():
    assert times(on_cuda(), "part", "place", "kind") == {
        ("augment", "", kinds.COPIES): 20,
        ("forward", "stage 1", kinds.PRODUCTS): 100,
        ("forward", "stage 1", "GELU"): 30,
        ("backward", "stage 1", kinds.PRODUCTS): 100,
        ("backward", "", kinds.COLLECTIVES): 40,  # the rest is hidden
        ("optimizer", "", "optimizer"): 100,
        ("data", "", kinds.IDLE): 100,
        ("augment", "", kinds.IDLE): 30,
        ("forward", "", kinds.IDLE): 100,
        ("backward", "", kinds.IDLE): 20 + 60,
        ("optimizer", "", kinds.IDLE): 100 + 100,
        ("between", "", kinds.IDLE): 100,
    }


def test_every_moment_of_the_steps_is_counted_once():
    slices = sorted(take_apart(on_cuda().json()).slices, key=lambda piece: piece.start)
    assert slices[0].start == 0
    assert slices[-1].end == 1000
    assert all(one.end == other.start for one, other in pairwise(slices))


def test_operations_are_counted_where_they_are_called():
    flops = take_apart(on_cuda().json()).flops
    assert flops == {
        ("stage 1", "forward"): 2 * 16 * 4 * 8,
        ("stage 1", "backward"): 2 * 16 * 8 * 4,
    }


def test_work_that_names_no_launch_goes_to_the_operator_it_names():
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 100)
    trace.range("forward", 0, 50)
    trace.range("stage 2", 0, 50)
    number = trace.add("aten::gelu", 10, 20)
    event = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 30.0, "dur": 5.0}
    trace.events.append({**event, "args": {"External id": number, "correlation": 77}})
    trace.events.append({**event, "ts": 60.0, "args": {}})
    assert times(trace, "place", "kind")["stage 2", "GELU"] == 5
    assert times(trace, "place", "kind")["", kinds.OTHER] == 5


def backward_on_the_host() -> Trace:
    """One thread: a forward pass, autograd's nodes, and among them what is computed again."""
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 1000)
    trace.range("forward", 0, 400)
    trace.range("stage 3 / block 1", 0, 390)
    trace.add("aten::roll", 10, 50, **{"Sequence number": 20})
    trace.range("stage 3 / block 1 / attention", 50, 300)
    # Both look at the same number; the last of them makes the node.
    trace.add("aten::contiguous", 60, 70, **{"Sequence number": 21})
    trace.add("aten::scaled_dot_product_attention", 100, 200, **{"Sequence number": 21})
    trace.add("aten::bmm", 120, 160, **{"Sequence number": 22})
    trace.range("loss", 400, 450)
    trace.add("aten::mul", 410, 440, **{"Sequence number": 23})
    trace.range("backward", 450, 1000)
    node = "autograd::engine::evaluate_function: "
    trace.add(f"{node}MulBackward0", 460, 470, **{"Sequence number": 23, "Fwd thread id": 1})
    trace.add(f"{node}BmmBackward0", 500, 700, **{"Sequence number": 22, "Fwd thread id": 1})
    trace.range("stage 3 / block 1 / attention", 510, 610)
    trace.add("aten::mul", 520, 600, **{"Sequence number": 40})
    trace.add("BmmBackward0", 620, 690, **{"Sequence number": 22, "Fwd thread id": 1})
    trace.add("aten::bmm", 630, 680)
    trace.add("aten::add_", 692, 696)
    trace.add(f"{node}torch::autograd::AccumulateGrad", 700, 720)
    trace.add("aten::copy_", 800, 850)
    return trace


def test_the_backward_pass_is_where_the_forward_pass_was():
    found = times(backward_on_the_host(), "part", "way", "place", "kind")
    assert found == {
        ("forward", "forward", "stage 3", kinds.LAYOUT): 40 + 10,
        ("forward", "forward", "stage 3", kinds.ATTENTION): 100,
        ("forward", "forward", "stage 3", kinds.HOST): 240,
        ("forward", "forward", "", kinds.HOST): 10,
        ("loss", "", "", "loss"): 50,
        ("backward", "backward", "", "loss"): 10,
        # The product was called by attention, and so is its gradient.
        ("backward", "backward", "stage 3", kinds.ATTENTION): 10 + 10 + 70 + 2 + 4,
        ("backward", "again", "stage 3", kinds.ATTENTION): 80,
        ("backward", "again", "stage 3", kinds.HOST): 20,
        ("backward", "backward", "stage 3", kinds.RESIDUAL): 4,
        ("backward", "backward", "", kinds.GRADIENTS): 20 + 50,
        ("backward", "backward", "", kinds.HOST): 10 + 30 + 80 + 150,
    }


def test_the_host_waits_for_collectives_that_other_threads_carry_out():
    """A collective still under way when the host goes on with something else was not waited for."""
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 1000)
    trace.range("optimizer", 0, 500)
    trace.add("c10d::allreduce_", 10, 20)
    trace.add("gloo:all_reduce", 15, 300, category="user_annotation", thread=NETWORK)
    trace.add("aten::copy_", 310, 400)
    trace.add("gloo:all_reduce", 600, 2000, category="user_annotation", thread=NETWORK)
    found = times(trace, "part", "kind")
    assert found["optimizer", kinds.COLLECTIVES] == 10 + 280
    assert found["between", kinds.OTHER] == 500


def test_hooks_of_autograds_own_thread_belong_to_the_backward_pass():
    trace = on_cuda()
    trace.add("aten::copy_", 400, 430, thread=AUTOGRAD)
    trace.kernel("void copy_kernel", 560, 580, 410, thread=AUTOGRAD)
    assert times(trace, "part", "kind")["backward", kinds.GRADIENTS] == 20


def test_a_compiled_block_shows_the_products_in_it():
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 100)
    trace.range("forward", 0, 100)
    trace.range("stage 1 / block 0", 0, 100)
    trace.add("Torch-Compiled Region: 0/0", 0, 100, **{"Sequence number": 3})
    trace.add("aten::addmm", 20, 50)
    trace.add("triton_per_fused_native_layer_norm_0", 50, 70)
    assert times(trace, "place", "kind") == {
        ("stage 1", kinds.COMPILED): 70,
        ("stage 1", kinds.PRODUCTS): 30,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as a trace"),
        (b"[]", "expected a trace of torch's profiler"),
        (gzip.compress(b"x" * 99)[:20], "cannot be read as a trace"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, message):
    path = tmp_path / ("t.json.gz" if content[:1] == b"\x1f" else "t.json")
    path.write_bytes(content)
    with pytest.raises(PretrainError, match=message):
        read_trace(path)


def test_a_trace_without_a_step_is_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": [{"ph": "M", "name": "x", "pid": MAIN}]}))
    with pytest.raises(PretrainError, match="no whole step"):
        take_apart(read_trace(path))
