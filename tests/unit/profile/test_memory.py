"""What was in memory at its peak, from made-up allocations."""

from fabricated_trace import Trace

from pretrain.profile.memory import find_peak, known_before
from pretrain.profile.trace import take_apart


def step_with_memory(device: int = 0) -> Trace:
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 1000)
    trace.range("augment", 0, 100)
    trace.memory(10, 1, 50, 1050, device)  # the images
    trace.range("forward", 100, 400)
    trace.range("stage 2 / block 0", 100, 390)
    trace.memory(110, 2, 300, 1350, device)  # kept
    trace.memory(120, 3, 200, 1550, device)
    trace.memory(130, 3, -200, 1350, device)
    trace.range("backward", 400, 800)
    trace.memory(450, 4, 70, 1420, device)
    trace.memory(500, 5, 80, 1500, device)  # the peak
    trace.memory(550, 4, -70, 1430, device)
    trace.memory(600, 2, -300, 1130, device)
    trace.memory(650, 99, -1000, 130, device)  # from before the profile
    trace.range("optimizer", 800, 1000)
    trace.memory(850, 5, -80, 50, device)
    return trace


def test_the_peak_is_told_by_what_took_it():
    peak = find_peak(take_apart(step_with_memory().json()))
    assert peak is not None
    # 550 while the forward pass ran, of which 200 were given back before the backward pass.
    assert peak.part == "forward"
    assert peak.bytes_by_kind == {
        "inputs and augmentation": 50,
        "activations, stage 2": 300,
        "temporary, forward pass": 200,
    }
    assert peak.kept == {"stage 2": 300}
    assert peak.before == 0  # the host's allocator does not know


def test_gradients_outlive_the_backward_pass_and_temporaries_do_not():
    trace = step_with_memory()
    trace.memory(460, 6, 500, 2000)
    trace.memory(540, 6, -500, 1500)
    peak = find_peak(take_apart(trace.json()))
    assert peak is not None
    assert peak.part == "backward"
    assert peak.bytes_by_kind["temporary, backward pass"] == 570
    assert peak.bytes_by_kind["gradients, ZeRO's buckets"] == 80


def test_on_a_device_the_allocator_tells_what_was_there_before():
    peak = find_peak(take_apart(step_with_memory(device=1).json()))
    assert peak is not None
    assert peak.before == 1000
    assert known_before({"parameters": 600}, peak) == {"parameters": 600, "elsewhere, before": 400}


def test_what_a_gpu_run_takes_on_the_host_is_not_the_devices():
    trace = step_with_memory(device=1)
    trace.memory(200, 77, 10**9, 10**9, device=0)
    peak = find_peak(take_apart(trace.json()))
    assert peak is not None
    assert sum(peak.bytes_by_kind.values()) == 550


def test_without_allocations_there_is_no_peak():
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 10)
    assert find_peak(take_apart(trace.json())) is None
