"""Traces made up event by event, in the format of torch's profiler."""

from itertools import count
from typing import Any

MAIN, AUTOGRAD, NETWORK = 1, 2, 3
"""Threads of the host."""


class Trace:
    """Collects events; times are microseconds."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._ids = count(1)

    def add(
        self, name: str, start: float, end: float, *, category="cpu_op", thread=MAIN, **arguments
    ) -> int:
        """An event from start to end; returns its id, which device events refer to."""
        number = next(self._ids)
        self.events.append(
            {
                "ph": "X", "cat": category, "name": name, "pid": 9, "tid": thread,
                "ts": float(start), "dur": float(end - start),
                "args": {"External id": number, **arguments},
            }
        )  # fmt: skip
        return number

    def range(self, name: str, start: float, end: float) -> None:
        self.add(name, start, end, category="user_annotation")

    def kernel(
        self, name: str, start: float, end: float, launch: float, *, category="kernel",
        stream=7, thread=MAIN,
    ) -> None:  # fmt: skip
        """Something the device does, launched by the host at a time."""
        number = next(self._ids)
        self.add(
            "cudaLaunchKernel", launch, launch + 1, category="cuda_runtime", thread=thread,
            correlation=number,
        )  # fmt: skip
        self.events.append(
            {
                "ph": "X", "cat": category, "name": name, "pid": 0, "tid": stream,
                "ts": float(start), "dur": float(end - start),
                "args": {"device": 0, "stream": stream, "correlation": number},
            }
        )  # fmt: skip

    def memory(self, time: float, address: int, size: int, allocated: int, device: int = 0) -> None:
        self.events.append(
            {
                "ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 9,
                "tid": MAIN, "ts": float(time),
                "args": {
                    "Addr": address, "Bytes": size, "Total Allocated": allocated,
                    "Device Type": device, "Device Id": 0 if device else -1,
                },
            }
        )  # fmt: skip

    def json(self) -> dict[str, Any]:
        return {"traceEvents": list(self.events)}


def on_cuda() -> Trace:
    """One step of 1000 µs: the host launches ahead of a device that is busy for a part of it."""
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 1000)
    trace.range("data", 0, 100)
    trace.range("augment", 100, 150)
    trace.kernel("Memcpy HtoD (Pinned -> Device)", 120, 140, 110, category="gpu_memcpy")
    trace.range("forward", 150, 300)
    trace.range("stage 1", 150, 290)
    trace.range("stage 1 / block 0", 150, 290)
    trace.range("stage 1 / block 0 / mlp", 200, 250)
    dims = [[8], [16, 4], [4, 8], [], []]
    trace.add("aten::addmm", 200, 220, **{"Sequence number": 5, "Input Dims": dims})
    trace.kernel("ampere_sgemm_64x64_tn", 250, 350, 210)
    # Launched, and late: of the same place though its range is over when it runs.
    trace.add("aten::gelu", 225, 240, **{"Sequence number": 6})
    trace.kernel("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernel>", 350, 380, 230)
    trace.range("backward", 300, 600)
    node = {"Sequence number": 5, "Fwd thread id": 1}
    name = "autograd::engine::evaluate_function: AddmmBackward0"
    trace.add(name, 310, 360, thread=AUTOGRAD, **node)
    trace.add("aten::mm", 320, 340, thread=AUTOGRAD, **{"Input Dims": [[16, 8], [8, 4]]})
    trace.kernel("ampere_sgemm_64x64_nn", 400, 500, 330, thread=AUTOGRAD)
    # Hidden behind the product for 60 of its 100 µs.
    trace.add("c10d::_reduce_scatter_base_", 365, 380, thread=AUTOGRAD)
    trace.kernel(
        "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        440, 540, 370, stream=20, thread=AUTOGRAD,
    )  # fmt: skip
    trace.range("optimizer", 600, 900)
    trace.range("Optimizer.step#AdamW.step", 620, 700)
    trace.add("aten::_fused_adamw_", 630, 690)
    trace.kernel("void at::native::multi_tensor_apply_kernel<FusedAdam>", 700, 800, 640)
    trace.add("ProfilerStep#1", 0, 1000, category="gpu_user_annotation", thread=7)
    return trace
