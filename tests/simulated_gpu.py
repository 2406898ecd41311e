"""A simulated CUDA GPU for a CPU build of torch: whole programs run on it, with the values that a CPU computes.

python tests/simulated_gpu.py train.py --max_steps 2 --output_dir /tmp/run
torchrun --nproc-per-node=2 tests/simulated_gpu.py train.py --output_dir /tmp/run       # on a simulated NCCL

A SimulatedTensor reports the device cuda:N and holds a CPU tensor. What raises on a GPU raises here: operands on two
devices, a CPU tensor in a collective of NCCL, a host wait during the capture of a CUDA graph, an index out of bounds.
Kernel launches are counted, and where the host waits for the GPU is recorded.

An ATen operation is one launch: also a copy, a collective, scaled_dot_product_attention (plus three for a boolean
mask), and a foreach or fused operation of many tensors. The replay of a CUDA graph is one. Views and allocations are
none. A GPU launches more than one kernel for some operations.

Not simulated: time, memory, streams that run concurrently, torch.compile, changes of a shape in place (resize_, set_),
and threads of the program that create tensors on the GPU. torch.load returns saved tensors of the GPU on the CPU.

SIMULATED_GPU_REPORT=PATH       gets a JSON report at exit (PATH.RANK with several ranks), see Recorder.report
SIMULATED_GPU_FAULT=KIND        breaks the attention kernels for packed batches: wrong, raises, nan, or wrong_gradient
SIMULATED_GPU_MAX_ELEMENTS=N    operations that allocate a larger tensor raise torch.OutOfMemoryError
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.elastic.multiprocessing.errors import record
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "train.py")
TOOLS = (__file__, str(ROOT / "tests" / "copies.py"))  # the simulation, and what starts a test's process
TOTAL_MEMORY = 80 * 2**30  # bytes
aten = torch.ops.aten

# A CPU build has CUDA's dispatch keys, autograd and autocast. It lacks a device guard, and hooks that describe the
# device. Pinned memory is ordinary memory at remembered addresses.
SOURCE = r"""
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <map>
#include <mutex>

using c10::Device, c10::DeviceIndex, c10::Stream;
constexpr auto CUDA = c10::DeviceType::CUDA;
static DeviceIndex device_count = 1;
static thread_local DeviceIndex current_index = 0;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  Device getDevice() const override { return Device(CUDA, current_index); }
  void setDevice(Device d) const override { uncheckedSetDevice(d); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.has_index()) current_index = d.index(); }
  Device exchangeDevice(Device d) const override { Device old = getDevice(); setDevice(d); return old; }
  DeviceIndex deviceCount() const noexcept override { return device_count; }
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};

static std::map<const char*, size_t> pinned_blocks;  // address -> bytes
static std::mutex pinned_mutex;

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* data = static_cast<char*>(c10::alloc_cpu(bytes ? bytes : 1));
    std::lock_guard lock(pinned_mutex);
    pinned_blocks[data] = bytes;
    return {data, data, &release, Device(c10::DeviceType::CPU)};
  }
  static void release(void* data) {
    std::lock_guard lock(pinned_mutex);
    pinned_blocks.erase(static_cast<char*>(data));
    c10::free_cpu(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
static PinnedAllocator pinned_allocator;

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return device_count; }
  DeviceIndex current_device() const override { return current_index; }
  DeviceIndex getCurrentDevice() const override { return current_index; }
  void setCurrentDevice(DeviceIndex index) const override { current_index = index; }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard lock(pinned_mutex);
    auto next = pinned_blocks.upper_bound(static_cast<const char*>(data));
    return next != pinned_blocks.begin() && data < std::prev(next)->first + std::prev(next)->second;
  }
};
static Hooks hooks;

extern "C" {
void install(int count) {
  device_count = count;
  // torch's own object has virtual functions and no data members, so it can become an object of another class.
  auto* builtin = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(builtin) = *reinterpret_cast<void**>(&hooks);
  c10::impl::device_guard_impl_registry[static_cast<size_t>(CUDA)].store(new Guard());
}
void set_device(int index) { current_index = index; }
int get_device() { return current_index; }
}
"""


def is_supported() -> tuple[bool, str]:
    """Whether the simulation works here, and if not, why."""
    if torch.version.cuda or torch.version.hip:
        return False, "the simulated GPU needs a CPU build of torch"
    if not shutil.which("g++"):
        return False, "the simulated GPU needs g++"
    return True, ""


def load_library() -> ctypes.CDLL:
    """Compiles SOURCE once per torch installation and user. Raises RuntimeError with the reason if that fails."""
    supported, reason = is_supported()
    if not supported:
        raise RuntimeError(reason)
    folder = Path(tempfile.gettempdir()) / f"simulated-gpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    key = hashlib.sha256(f"{torch.__version__}{torch.__file__}{SOURCE}".encode()).hexdigest()[:16]
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as build:
            torch_dir = Path(torch.__file__).parent
            command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_dir}/include", "-x", "c++", "-"]
            command += ["-o", f"{build}/guard.so", f"-L{torch_dir}/lib", "-ltorch_cpu", "-lc10"]
            done = subprocess.run(command, input=SOURCE, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ could not compile the device guard:\n{done.stderr[-2000:]}")
            os.replace(f"{build}/guard.so", library)  # atomic: several processes may compile at once
    return ctypes.CDLL(str(library))


# ----------------------------------------------------------------------------------------------------------------------
# What is recorded


class Recorder:
    """What the simulated GPU did since the last reset()."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.launches = 0
        self.step_launches: list[int] = []  # of each optimizer step of train.py
        self.all_reduced_bytes = 0  # also those of reduce_scatter and all_gather
        self.set_device_calls: list[int] = []
        self.tensors_before_set_device = False
        self._counters = {"host_waits": Counter(), "copies": Counter()}
        self._step_is_open, self._stepped_at = False, 0

    @property
    def host_waits(self) -> list[dict]:
        """Where the host waited for the device: what, where (lines), function, in_step, count."""
        return self._rows("host_waits")

    @property
    def copies(self) -> list[dict]:
        """Blocking copies from pageable memory and all copies to the CPU, as in host_waits."""
        return self._rows("copies")

    def _rows(self, kind: str) -> list[dict]:
        keys = ("what", "where", "function", "in_step")
        return [dict(zip(keys, row)) | {"count": count} for row, count in self._counters[kind].items()]

    def report(self, exit_code: int) -> dict:
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"exit_code": exit_code} | public | {"host_waits": self.host_waits, "copies": self.copies}

    def note(self, kind: str, what: str) -> None:
        """kind: host_waits or copies."""
        self._counters[kind][what, *_place(sys._getframe(1))] += 1

    def count_launches(self, number: int) -> None:
        """Called at every operation, with 0 if it launches nothing: also counts by optimizer step.

        A step begins at the first operation inside the box that follows one outside, or that is above the line of the
        last optimizer.step().
        """
        line = _step_line(sys._getframe(1))
        if line and (not self._step_is_open or line < self._stepped_at):
            self.step_launches.append(0)
            self._stepped_at = 0
        self._step_is_open = line > 0
        self.launches += number
        if line:
            self.step_launches[-1] += number

    def after_optimizer_step(self) -> None:
        self._stepped_at = _step_line(sys._getframe(1))


@functools.cache
def _step_box() -> tuple[int, int]:
    """The lines of train.py between which the optimizer step lies."""
    lines = list(enumerate(Path(TRAIN).read_text().splitlines(), 1))
    first = next((number for number, line in lines if "one step, timed" in line), 0)
    last = next((number for number, line in lines[first:] if line.strip().startswith("# -----")), 0)
    return (first, last) if first else (0, 0)


def _step_line(frame) -> int:
    """The line of train.py's main that is being executed if it is inside the box of the step, else 0."""
    first, last = _step_box()
    while frame is not None:
        if frame.f_code.co_name == "main" and frame.f_code.co_filename == TRAIN:
            return frame.f_lineno if first < frame.f_lineno < last else 0
        frame = frame.f_back
    return 0


def _place(frame) -> tuple[str, str, bool]:
    """Lines of the project and of transformers, names of the project's functions, whether inside the step."""
    in_step, lines, names = _step_line(frame) > 0, [], []
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        is_ours = path.startswith(f"{ROOT}{os.sep}") and "site-packages" not in path and path not in TOOLS
        if is_ours or f"{os.sep}transformers{os.sep}" in path:
            lines.append(f"{os.path.basename(path)}:{frame.f_lineno}")
        if is_ours and not name.startswith("<"):  # no <module>, <lambda>, <listcomp>
            names.insert(0, name)
        frame = frame.f_back
    names = names[names.index("main") :] if "main" in names else names  # without decorators of main
    return " > ".join(reversed(lines[:4])), " > ".join(names), in_step


class State:
    """Of the simulated GPU of this process."""

    library: ctypes.CDLL | None = None
    recorder = Recorder()
    rng_state: torch.Tensor  # of the CPU generator that stands in for the device's
    stream: "Stream | None" = None
    capture: "Capture | None" = None
    nccl_groups: dict[str, str] = {}  # name of a process group -> "nccl" or "cpu:gloo,cuda:nccl"
    sync_debug_mode = 0
    is_broken = False  # by an index out of bounds


def host_wait(what: str, has_debug_mode: bool = True) -> None:
    """Records that the host waits for the device. Raises RuntimeError where a GPU does.

    has_debug_mode: whether set_sync_debug_mode applies. It does not to torch.cuda.synchronize(), among others.
    """
    if State.capture is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
    if has_debug_mode and State.sync_debug_mode == 2:
        raise RuntimeError("called a synchronizing CUDA operation")
    if has_debug_mode and State.sync_debug_mode == 1:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=3)
    State.recorder.note("host_waits", what)


# ----------------------------------------------------------------------------------------------------------------------
# Tensors


class SimulatedTensor(torch.Tensor):
    """A tensor on device cuda:N whose values are in the CPU tensor `held`."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        options = {"dtype": held.dtype, "device": device, "strides": held.stride()}
        made = cls._make_wrapper_subclass(cls, held.size(), storage_offset=held.storage_offset(), **options)
        made.held = held
        recorder = State.recorder
        recorder.tensors_before_set_device = recorder.tensors_before_set_device or not recorder.set_device_calls
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    # With __tensor_flatten__, Module.to() keeps the identity of parameters, as on a GPU.

    def __tensor_flatten__(self):
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict, device, size, stride):
        return SimulatedTensor(inner["held"], device)

    # What follows does not reach __torch_dispatch__.

    def tolist(self):
        host_wait("tolist")
        State.recorder.note("copies", "tolist")
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        text = "device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        raise TypeError(f"can't convert {self.device} {text}")

    __array__ = numpy

    def __repr__(self, **_):
        host_wait("repr")
        return f"{self.held!r} on {self.device}"

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if self.ndim == 0 else repr(self)

    def __deepcopy__(self, memo: dict):
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        copied = SimulatedTensor(self.held.clone(), self.device).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True  # it is an instance of nn.Parameter
        memo[id(self)] = copied
        return copied

    @property
    def data(self):
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if isinstance(value, SimulatedTensor):
            torch._C.TensorBase.data.__set__(self, value)
            self.held = value.held
        else:  # Module.to("cpu")
            kind = torch.nn.Parameter if getattr(self, "_is_param", False) else torch.Tensor
            torch.utils.swap_tensors(self, kind._make_subclass(kind, value.detach(), self.requires_grad))

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self):  # FSDP frees and allocates it
        return self.held.untyped_storage()

    def record_stream(self, stream) -> None:
        pass


class SimulatedGpuMode(TorchDispatchMode):
    """Intercepts operations without a SimulatedTensor: they may create tensors on the device."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch._dynamo is imported, which takes more than a second

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") becomes a CPU tensor and a copy
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(kind not in (torch.Tensor, torch.nn.Parameter, SimulatedTensor) for kind in types):
            return NotImplemented  # DTensor and AsyncCollectiveTensor: they call again with the tensors that they hold
        return dispatch(func, args, kwargs or {})


# ----------------------------------------------------------------------------------------------------------------------
# Operations

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WITHOUT_KERNEL = {"_unsafe_view", "lift_fresh", "wait_tensor", "is_pinned"}  # besides views
WAITS = {
    "_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "masked_select", "equal": "equal",
    "_unique2": "unique", "unique_dim": "unique", "unique_consecutive": "unique", "unique_dim_consecutive": "unique",
    "bincount": "bincount", "repeat_interleave": "repeat_interleave", "barrier": "barrier",
}  # fmt: skip
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
COPIES = {"_to_copy", "copy_", "_foreach_copy_"}


class Traits:
    """Of an operation."""

    def __init__(self, func):
        self.name = func._schema.name.split("::")[1]
        self.is_collective = func.namespace in ("c10d", "_c10d_functional")
        self.is_view = func.is_view or self.name in WITHOUT_KERNEL
        self.has_kernel = not self.is_view and self.name not in ALLOCATIONS
        self.draws_random_numbers = torch.Tag.nondeterministic_seeded in func.tags or func in KERNELS
        self.kernel = functools.partial(run_collective, func) if func.namespace == "c10d" else KERNELS.get(func, func)
        arguments = enumerate(func._schema.arguments)
        self.written = [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]


traits_of = functools.cache(Traits)


def _map(function, value):
    """Applies the function to the leaves of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, item) for item in value)
    return function(value)


def _tensors(*values) -> list[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    found: list[torch.Tensor] = []
    _map(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, values)
    return found


def _held(value):
    return value.held if isinstance(value, SimulatedTensor) else value


def _constant(value):
    """A CPU scalar is passed to a kernel by value, and is a constant of the graph in which the kernel is captured."""
    is_scalar = isinstance(value, torch.Tensor) and not value.is_cuda and value.ndim == 0
    return value.clone() if is_scalar else _held(value)


def dispatch(func, args: tuple, kwargs: dict):
    """Executes an operation on the CPU tensors after the checks of a GPU, and records it."""
    traits = traits_of(func)
    tensors = _tensors(args, *kwargs.values())
    simulated = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if traits.is_collective:
        check_collective(traits, args, tensors)
    if not simulated and (device is None or device.type != "cuda"):
        State.recorder.count_launches(0)
        return func(*args, **kwargs)
    if State.is_broken:
        raise RuntimeError("CUDA error: device-side assert triggered (by an earlier operation)")
    check_devices(traits, args, tensors)
    if device is not None and device.type == "cuda":
        device = _with_index(device)
    record_waits(traits, args, kwargs, device)
    State.recorder.count_launches(int(traits.has_kernel))

    held_kwargs = {name: _map(_held, value) for name, value in kwargs.items() if name != "pin_memory"}
    if device is not None:
        held_kwargs["device"] = torch.device("meta" if device.type == "meta" else "cpu")
    if traits.name == "_to_copy":
        held_kwargs["non_blocking"] = False
    is_constant = State.capture is not None and traits.name not in COPIES
    out = execute(traits, _map(_constant if is_constant else _held, args), held_kwargs)
    if traits.name == "_to_copy" and device is not None and device.type == "cpu" and kwargs.get("non_blocking"):
        return out.pin_memory()  # as on a GPU
    if device is not None and device.type != "cuda":
        return out

    before = {id(_held(tensor)): tensor for tensor in tensors}  # an in-place operation returns its argument

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in before:
            if value.shape != before[id(value)].shape:
                raise NotImplementedError(f"{func} changes a shape in place, which is not simulated")
            return before[id(value)]
        made = SimulatedTensor(value, device or simulated[0].device)
        if traits.is_view:
            torch._functionalize_unsafe_set(made, simulated[0])  # they share a storage, which DDP asks for
        else:
            check_memory(made)
        return made

    out = _map(wrapped, out)
    return with_finished_work(out) if func.namespace == "c10d" and isinstance(out, tuple) else out


def execute(traits: Traits, args: tuple, kwargs: dict):
    """Runs the kernel on CPU tensors, with the device's random numbers, and adds it to the graph of a capture."""
    capture = State.capture if traits.has_kernel else None
    if capture is not None:
        capture.save_written(traits, args, kwargs)
    try:
        out = run_kernel(traits, args, kwargs)
    except IndexError as error:  # no later operation of the process works
        State.is_broken = True
        raise RuntimeError(f"CUDA error: device-side assert triggered ({traits.name}: {error})") from None
    if capture is not None:
        capture.add(traits, args, kwargs, _tensors(out))
    return out


def run_kernel(traits: Traits, args: tuple, kwargs: dict):
    with device_random() if traits.draws_random_numbers else contextlib.nullcontext():
        return traits.kernel(*args, **kwargs)


def check_devices(traits: Traits, args: tuple, tensors: list) -> None:
    """Raises RuntimeError for operands on two devices. A CPU tensor without dimensions is allowed, as a scalar."""
    is_indexing = traits.name in INDEXING
    operands = _tensors(args[0], *args[2:3]) if is_indexing else tensors  # indices may be on the CPU
    devices = {str(tensor.device) for tensor in operands if tensor.is_cuda or (tensor.ndim and not tensor.is_meta)}
    if len(devices) > 1 and traits.name not in COPIES:
        names = " and ".join(sorted(devices, reverse=True))
        text = f"Expected all tensors to be on the same device, but found at least two devices, {names}!"
        raise RuntimeError(f"{text} ({traits.name})")
    if is_indexing and not args[0].is_cuda and any(index.is_cuda for index in _tensors(args[1])):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if traits.name == "_pin_memory":
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")


def record_waits(traits: Traits, args: tuple, kwargs: dict, device) -> None:
    """Records whether and why the host waits for the device in this operation."""
    name = traits.name
    if name in WAITS and kwargs.get("output_size") is None:  # with it, repeat_interleave does not wait
        host_wait(WAITS[name])
    elif name in INDEXING:
        indices, is_put = _tensors(args[1]), "put" in name
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        for index in indices:
            if not index.is_cuda:
                record_copy(index, to_cpu=False, non_blocking=False)
        # x[mask] = 0.0 is executed by masked_fill_.
        is_fill = is_put and len(indices) == len(masks) == 1 and not args[2].is_cuda and args[2].numel() == 1
        if masks and not is_fill:
            host_wait(f"{'index_put' if is_put else 'index'} with a boolean mask")
    elif name == "_to_copy" and device is not None and device.type != "meta" and device.type != args[0].device.type:
        record_copy(args[0], device.type == "cpu", kwargs.get("non_blocking", False))
    elif name in COPIES and name != "_to_copy":
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        for target, source in zip(_tensors(args[0]), _tensors(args[1])):
            if target.is_cuda != source.is_cuda:
                record_copy(target if source.is_cuda else source, source.is_cuda, non_blocking)


def record_copy(host_tensor: torch.Tensor, to_cpu: bool, non_blocking: bool) -> None:
    """host_tensor: the one on the CPU. For .to("cpu"), which allocates it, in pinned memory: the one on the GPU."""
    is_pinned = host_tensor.is_cuda or (host_tensor.is_pinned() and host_tensor.is_contiguous())
    if to_cpu:
        is_asynchronous = non_blocking and is_pinned
        State.recorder.note("copies", "copy to the CPU, non_blocking" if is_asynchronous else "copy to the CPU")
        if not is_asynchronous:
            host_wait("copy to the CPU")
    elif not non_blocking:
        if not is_pinned:
            State.recorder.note("copies", "copy from pageable memory")
        host_wait("copy from pinned memory without non_blocking" if is_pinned else "copy from pageable memory")
    elif not is_pinned and host_tensor.ndim:
        host_wait("copy from unpinned memory", has_debug_mode=False)


def check_memory(made: torch.Tensor) -> None:
    limit = os.environ.get("SIMULATED_GPU_MAX_ELEMENTS")
    if limit and made.numel() > int(limit):
        mib = made.numel() * made.element_size() / 2**20
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {mib:.2f} MiB (simulated)")


# ----------------------------------------------------------------------------------------------------------------------
# Random numbers: while an operation of the device draws them, the CPU's generator has the state of the device's


@contextlib.contextmanager
def device_random():
    cpu_state = torch.default_generator.get_state()
    torch.default_generator.set_state(State.rng_state)
    try:
        yield
    finally:
        State.rng_state = torch.default_generator.get_state()
        torch.default_generator.set_state(cpu_state)


def manual_seed(seed: int) -> None:
    State.rng_state = torch.Generator().manual_seed(int(seed)).get_state()


def access_rng_state(new_state: torch.Tensor | None = None, device="cuda") -> torch.Tensor | None:
    if State.capture is not None:
        raise RuntimeError("the state of the generator cannot be read or set during the capture of a CUDA graph")
    if new_state is None:
        return State.rng_state.clone()
    State.rng_state = new_state.clone()
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Attention kernels, computed from the formula in fp32. The backward pass draws the mask of dropout from the same seed.


def _attend(query, key, value, bias, keep, scale) -> list[torch.Tensor]:
    """[(softmax(Q K^T * scale + bias) * keep) V] for query, key, value [..., L, D]; keep: 0 or 1 / (1 - p)."""
    return [_probabilities(query, key, bias, scale).mul_(keep) @ value]


def _attend_backward(grad, query, key, value, bias, keep, scale) -> list[torch.Tensor]:
    """The gradients of query, key and value, and of bias before it was broadcast."""
    probabilities = _probabilities(query, key, bias, scale)
    grad_probabilities = (grad @ value.transpose(-1, -2)).mul_(keep)
    grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, torch.float32)
    grad_value = probabilities.mul_(keep).transpose(-1, -2) @ grad
    return [grad_scores @ key * scale, grad_scores.transpose(-1, -2) @ query * scale, grad_value, grad_scores]


def _probabilities(query, key, bias, scale) -> torch.Tensor:
    scores = (query * scale @ key.transpose(-1, -2)).add_(bias)
    return torch._safe_softmax(scores, -1)  # 0 where all keys are masked, as in the kernels


def _keep(shape, p: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) >= p).float() / (1 - p) if p else torch.ones(())


def _by_sentence(function, inputs, cu_seqlens, p, seed, scale, window=(None, None), faults=("wrong",)) -> list:
    """Applies one of the functions above to each sentence of packed tensors [T, H, D]. Returns tensors [T, H, D]."""
    if State.capture is not None:  # the values are not used
        return [torch.full_like(tensor, math.nan) for tensor in inputs[-3:]]
    scale = 1 / math.sqrt(inputs[0].shape[-1]) if scale is None else scale
    is_broken = os.environ.get("SIMULATED_GPU_FAULT") in faults
    bounds = [0, len(inputs[0])] if is_broken else cu_seqlens.tolist()
    generator, results = torch.Generator().manual_seed(int(seed)), []
    for start, end in itertools.pairwise(bounds):
        parts = [tensor[start:end].transpose(0, 1).float() for tensor in inputs]  # [H, L, D]
        heads, length, _ = parts[0].shape
        left, right = (length if side is None or side < 0 else side for side in window)
        distance = torch.arange(length) - torch.arange(length)[:, None]  # of the key from the query
        bias = torch.zeros(length, length).masked_fill_((distance < -left) | (distance > right), -math.inf)
        keep = _keep((heads, length, length), p, generator)
        results.append([out.transpose(0, 1) for out in function(*parts, bias, keep, scale)[:3]])
    return [torch.cat(parts).to(inputs[0].dtype).contiguous() for parts in zip(*results)]


def _check_packed(query, key, value, cu_q, cu_k, max_q, max_k) -> None:
    """RuntimeError where the real kernels raise, AssertionError where they would use wrong memory."""
    if cu_q is None or cu_q.dtype != torch.int32 or cu_k.dtype != torch.int32:
        raise RuntimeError("cu_seqlens must be int32")
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise RuntimeError("the head dimension must be a multiple of 8 and at most 256")
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value)):
        raise RuntimeError("the last dimension must be contiguous")
    lengths = cu_q.diff()
    assert torch.equal(cu_q, cu_k), "only self-attention is simulated"
    assert cu_q[0] == 0 and cu_q[-1] == len(query) and (lengths >= 0).all(), (cu_q, len(query))
    assert lengths.max() <= min(max_q, max_k), (lengths.max(), max_q, max_k)


def _with_fault(out: torch.Tensor) -> torch.Tensor:
    fault = os.environ.get("SIMULATED_GPU_FAULT")
    if fault == "raises":
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    return out.fill_(math.nan) if fault == "nan" else out


def flash_forward(
    query, key, value, cu_q, cu_k, max_q, max_k, p, is_causal, _, scale=None, window_size_left=None,
    window_size_right=None, **unused,
):  # fmt: skip
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    _check_packed(query, key, value, cu_q, cu_k, max_q, max_k)
    seed, window = torch.randint(2**62, ()), (window_size_left, 0 if is_causal else window_size_right)
    (out, *_) = _by_sentence(_attend, (query, key, value), cu_q, p, seed, scale, window)
    rng_state = torch.stack([seed, torch.zeros_like(seed)]).view(torch.uint64)
    empty = torch.zeros((), dtype=torch.uint64)
    return _with_fault(out), torch.zeros(query.shape[1], len(query)), rng_state, empty, torch.zeros(0)


def flash_backward(
    grad, query, key, value, out, logsumexp, cu_q, cu_k, max_q, max_k, p, is_causal, rng_state, _, scale=None,
    window_size_left=None, window_size_right=None,
):  # fmt: skip
    seed, window = rng_state.view(torch.int64)[0], (window_size_left, 0 if is_causal else window_size_right)
    inputs, faults = (grad, query, key, value), ("wrong", "wrong_gradient")
    return tuple(_by_sentence(_attend_backward, inputs, cu_q, p, seed, scale, window, faults))


def efficient_forward(
    query, key, value, bias, cu_q, cu_k, max_q, max_k, p, mask_type, compute_log_sumexp=False, scale=None, **options
):
    assert len(query) == 1 and bias is None and mask_type == 0 and not options.get("window_size"), "not simulated"
    query, key, value = query[0], key[0], value[0]
    _check_packed(query, key, value, cu_q, cu_k, max_q, max_k)
    seed = torch.randint(2**62, ())
    (out, *_) = _by_sentence(_attend, (query, key, value), cu_q, p, seed, scale)
    logsumexp = torch.zeros(len(cu_q) - 1, query.shape[1], max_q if compute_log_sumexp else 0)
    return _with_fault(out)[None], logsumexp, seed, torch.zeros_like(seed), max_q, max_k


def efficient_backward(
    grad, query, key, value, bias, out, cu_q, cu_k, max_q, max_k, logsumexp, p, seed, offset, mask_type, _,
    scale=None, **options,
):  # fmt: skip
    if not logsumexp.numel():
        raise RuntimeError("the backward pass needs compute_log_sumexp=True in the forward pass")
    inputs, faults = (grad[0], query[0], key[0], value[0]), ("wrong", "wrong_gradient")
    grads = _by_sentence(_attend_backward, inputs, cu_q, p, seed, scale, faults=faults)
    return *(grad[None] for grad in grads), None


def _padded_inputs(query, key, bias, p, is_causal, seed, scale) -> list:
    """bias, keep and scale for query [..., L, D], key [..., S, D]."""
    shape = *query.shape[:-1], key.shape[-2]
    bias = torch.zeros(()) if bias is None else bias.float()
    if is_causal:
        bias = bias + torch.full(shape[-2:], -math.inf).triu(1)
    keep = _keep(shape, p, torch.Generator().manual_seed(int(seed)))
    return [bias, keep, 1 / math.sqrt(query.shape[-1]) if scale is None else scale]


def sdpa_forward(query, key, value, bias, compute_log_sumexp, p=0.0, is_causal=False, scale=None):
    seed = torch.randint(2**62, ())
    if p == 0:  # faster than the formula
        out = cpu_sdpa(query, key, value, bias, 0.0, is_causal, scale=scale)
    else:
        inputs = [tensor.float() for tensor in (query, key, value)]
        inputs += _padded_inputs(query, key, bias, p, is_causal, seed, scale)
        out = _attend(*inputs)[0].to(query.dtype)
    return out, torch.zeros(query.shape[:-1]), seed, torch.zeros_like(seed)


def sdpa_backward(
    grad, query, key, value, bias, out, logsumexp, seed, offset, p, grad_input_mask, is_causal=False, scale=None
):
    inputs = [tensor.float() for tensor in (grad, query, key, value)]
    inputs += _padded_inputs(query, key, bias, p, is_causal, seed, scale)
    *grads, grad_scores = _attend_backward(*inputs)
    grad_bias = grad_scores.sum_to_size(bias.shape).to(bias.dtype) if grad_input_mask[3] else None
    return *(grad.to(query.dtype) for grad in grads), grad_bias


KERNELS = {
    aten._flash_attention_forward.default: flash_forward,
    aten._flash_attention_backward.default: flash_backward,
    aten._efficient_attention_forward.default: efficient_forward,
    aten._efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_efficient_attention.default: sdpa_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: sdpa_backward,
}
cpu_sdpa = torch.nn.functional.scaled_dot_product_attention


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Calls the kernel of a GPU. The CPU build would execute the formula's ten operations for tensors on a GPU."""
    if not isinstance(query, SimulatedTensor):
        return cpu_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -math.inf)
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    op = aten._scaled_dot_product_efficient_attention
    return op(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


# ----------------------------------------------------------------------------------------------------------------------
# CUDA graphs


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Capture:
    """The operations of a graph. A capture computes nothing on a GPU: at its end, what was written is restored, and
    what was allocated is filled with NaN."""

    def __init__(self):
        self.operations: list[tuple] = []
        self.saved: dict[int, tuple] = {}  # address -> a storage that was written, and its bytes before
        self.allocated: dict[int, torch.Tensor] = {}  # address -> tensor
        self.rng_state = State.rng_state

    def save_written(self, traits: Traits, args: tuple, kwargs: dict) -> None:
        for i, name in traits.written:
            for tensor in _tensors(args[i] if i < len(args) else kwargs.get(name)):
                if _address(tensor) not in self.allocated and _address(tensor) not in self.saved:
                    self.saved[_address(tensor)] = tensor.untyped_storage(), tensor.untyped_storage().clone()

    def add(self, traits: Traits, args: tuple, kwargs: dict, outputs: list[torch.Tensor]) -> None:
        inputs = set(map(_address, _tensors(args, *kwargs.values())))
        self.allocated |= {_address(made): made for made in outputs if _address(made) not in inputs}
        self.operations.append((traits, args, kwargs, outputs))

    def end(self) -> None:
        for storage, before in self.saved.values():
            storage.copy_(before)
        for tensor in self.allocated.values():
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
        State.rng_state = self.rng_state


class CUDAGraph:
    """torch.cuda.CUDAGraph: a replay repeats the operations on their memory, with new random numbers."""

    def __init__(self, keep_graph: bool = False):
        self.captured: Capture | None = None

    def capture_begin(self, pool=None, capture_error_mode: str = "global", **_) -> None:
        State.capture = self.captured = Capture()

    def capture_end(self) -> None:
        State.capture = None
        self.captured.end()

    def replay(self) -> None:
        if self.captured is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        State.recorder.count_launches(1)
        with torch.no_grad(), _disable_current_modes():
            for traits, args, kwargs, outputs in self.captured.operations:
                for output, again in zip(outputs, _tensors(run_kernel(traits, args, kwargs))):
                    if output.data_ptr() != again.data_ptr():
                        output.copy_(again)

    def reset(self) -> None:
        self.captured = None

    def pool(self) -> tuple[int, int]:
        return (0, 1)


class CaptureContext:
    """torch.cuda.graph"""

    def __init__(self, cuda_graph: CUDAGraph, pool=None, stream=None, capture_error_mode: str = "global", **_):
        self.cuda_graph = cuda_graph

    def __enter__(self) -> None:
        host_wait("capture of a CUDA graph", has_debug_mode=False)  # it begins with torch.cuda.synchronize()
        self.cuda_graph.capture_begin()

    def __exit__(self, error, *_) -> None:
        self.cuda_graph.capture_end()
        if error is not None:
            self.cuda_graph.reset()


# ----------------------------------------------------------------------------------------------------------------------
# torch.cuda


class Stream:
    """Operations are executed in the order of the program, whatever their stream."""

    def __init__(self, device=None, priority: int = 0, **_):
        self.device, self.priority = _with_index(device), priority

    def synchronize(self) -> None:
        host_wait("Stream.synchronize")

    def query(self) -> bool:
        return True

    def wait_event(self, event) -> None:
        pass

    def wait_stream(self, stream) -> None:
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self):
        self.previous, State.stream = current_stream(), self
        return self

    def __exit__(self, *error) -> None:
        State.stream = self.previous


class Event:
    """Measures the time of the host between records."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_):
        self.enable_timing, self.seconds = enable_timing, None

    def record(self, stream=None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream=None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        host_wait("Event.synchronize", has_debug_mode=False)

    def elapsed_time(self, end: "Event") -> float:
        if not (self.enable_timing and end.enable_timing and self.seconds and end.seconds):
            raise RuntimeError("Both events must be created with enable_timing=True and recorded")
        return 1e3 * (end.seconds - self.seconds)


def current_stream(device=None) -> Stream:
    State.stream = State.stream or Stream()
    return State.stream


def num_devices() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _with_index(device) -> torch.device:
    """cuda -> cuda:N, the current device. Raises RuntimeError for a device that does not exist."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    index = State.library.get_device() if device.index is None else device.index
    if index >= num_devices():
        raise RuntimeError(f"CUDA error: invalid device ordinal ({index})")
    return torch.device("cuda", index)


def set_device(device) -> None:
    index = _with_index(device).index
    State.recorder.set_device_calls.append(index)
    State.library.set_device(index)


def exchange_device(index: int) -> int:
    previous = State.library.get_device()
    if index >= 0:
        State.library.set_device(index)
    return previous


def set_sync_debug_mode(mode: int | str) -> None:
    State.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


def used_memory(device=None) -> int:
    """Bytes of the whole process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_memory(device=None) -> int:
    """Bytes of the whole process, since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def inference_mode(mode=True):
    """Is no_grad: in inference mode tensors have no version counter, and views of wrapper tensors need one."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


def nothing(*args, **kwargs) -> None:
    pass


def patch_torch_cuda() -> None:
    cuda = torch.cuda
    cuda._initialized = True  # checkpointing saves the generator's state only then
    cuda._lazy_init = cuda._lazy_call = cuda.empty_cache = cuda.ipc_collect = nothing
    cuda.reset_peak_memory_stats = cuda.reset_max_memory_allocated = cuda.reset_accumulated_memory_stats = nothing
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.is_bf16_supported = lambda including_emulation=True: True
    cuda.device_count, cuda.set_device = num_devices, set_device
    cuda.current_device = lambda: State.library.get_device()
    cuda._exchange_device = cuda._maybe_exchange_device = exchange_device
    name, capability = "simulated GPU", (8, 0)
    properties = {"name": name, "total_memory": TOTAL_MEMORY, "multi_processor_count": 108, "major": 8, "minor": 0}
    cuda.get_device_properties = lambda device=None: SimpleNamespace(**properties)
    cuda.get_device_name = lambda device=None: name
    cuda.get_device_capability = lambda device=None: capability
    cuda.get_arch_list = lambda: ["sm_80"]
    cuda.memory_allocated = cuda.memory_reserved = used_memory
    cuda.max_memory_allocated = cuda.max_memory_reserved = peak_memory
    cuda.mem_get_info = lambda device=None: (TOTAL_MEMORY - used_memory(), TOTAL_MEMORY)
    cuda.memory_stats = lambda device=None: {}
    cuda.synchronize = lambda device=None: host_wait("synchronize", has_debug_mode=False)
    cuda.set_sync_debug_mode, cuda.get_sync_debug_mode = set_sync_debug_mode, lambda: State.sync_debug_mode
    cuda.manual_seed = cuda.manual_seed_all = manual_seed
    cuda.get_rng_state, cuda.set_rng_state = lambda device="cuda": access_rng_state(), access_rng_state
    cuda.get_rng_state_all = lambda: [access_rng_state()] * num_devices()
    cuda.set_rng_state_all = lambda states: access_rng_state(states[State.library.get_device()])
    cuda.Stream, cuda.Event = Stream, Event
    cuda.current_stream = cuda.default_stream = current_stream
    cuda.stream = lambda stream: stream or contextlib.nullcontext()
    for module in (cuda, cuda.graphs):
        module.CUDAGraph, module.graph, module.graph_pool_handle = CUDAGraph, CaptureContext, lambda: (0, 1)
        module.is_current_stream_capturing = lambda: State.capture is not None
    cuda.nccl.version = lambda: (2, 27, 0)  # asked for when an error of a collective is logged


# ----------------------------------------------------------------------------------------------------------------------
# NCCL: process groups of gloo, which receive the CPU tensors


def check_collective(traits: Traits, args: tuple, tensors: list) -> None:
    """Raises RuntimeError for a CPU tensor in a group of NCCL alone. Counts the bytes of tensors on the GPU."""
    names = [arg for arg in args if isinstance(arg, str)]
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            with contextlib.suppress(RuntimeError):  # the operation (sum) and options are objects as well
                names.append(dist.ProcessGroup.unbox(arg).group_name)
    backend = next((State.nccl_groups[name] for name in names if name in State.nccl_groups), None)
    on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
    if backend == "nccl" and len(on_gpu) < len(tensors):
        raise RuntimeError(f"{traits.name}: No backend type associated with device type cpu")
    name = traits.name.replace("_", "")
    if backend and on_gpu and any(kind in name for kind in ("allreduce", "allgather", "reducescatter")):
        sides = (_tensors(args[0]), _tensors(args[1]))  # input and output: a part, and the whole
        State.recorder.all_reduced_bytes += max(sum(x.numel() * x.element_size() for x in side) for side in sides)


def run_collective(func, *args, **kwargs):
    """Also waits for it. On a GPU, streams order a collective and the operations after it."""
    out = func(*args, **kwargs)
    if "send" not in str(func) and "recv" not in str(func):  # would wait for the other rank's counterpart
        dist.Work.unbox(out[-1] if isinstance(out, tuple) else out).wait()
    return out


def with_finished_work(out: tuple) -> tuple:
    """Replaces the Work, whose result would be CPU tensors. DDP reads the summed gradients from it."""
    future = torch.futures.Future()
    future.set_result(_tensors(out))
    return *out[:-1], torch._C._distributed_c10d._create_work_from_future(future).boxed()


gloo_init_process_group, gloo_new_group, gloo_get_backend = dist.init_process_group, dist.new_group, dist.get_backend
gloo_object_device = c10d._get_object_coll_device


def _as_gloo(backend: str | None) -> str | None:
    return "cpu:gloo,cuda:gloo" if backend and "nccl" in backend else backend


def _backend_of(group) -> str | None:
    return State.nccl_groups.get((group or dist.group.WORLD).group_name)


def _remember_backend(group, backend: str | None) -> None:
    if backend and "nccl" in backend and isinstance(group, dist.ProcessGroup):  # not on ranks outside the group
        State.nccl_groups[group.group_name] = backend.removeprefix("cuda:")


def init_process_group(backend=None, *args, device_id=None, **kwargs) -> None:
    gloo_init_process_group(_as_gloo(backend), *args, **kwargs)
    _remember_backend(dist.group.WORLD, backend)


def new_group(ranks=None, timeout=None, backend=None, *args, device_id=None, **kwargs):
    backend = backend or _backend_of(None)
    group = gloo_new_group(ranks, timeout, _as_gloo(backend), *args, **kwargs)
    _remember_backend(group, backend)
    return group


def patch_torch_distributed() -> None:
    dist.init_process_group, dist.new_group, dist.is_nccl_available = init_process_group, new_group, lambda: True
    dist.get_backend = lambda group=None: _backend_of(group) or gloo_get_backend(group)
    # of object collectives and barriers
    c10d._get_object_coll_device = lambda group=None: (
        "cuda" if _backend_of(group) == "nccl" else gloo_object_device(group)
    )
    dist.Logger.set_runtime_stats_and_log = nothing  # DDP's statistics need CUDA's timer


# ----------------------------------------------------------------------------------------------------------------------


def install() -> None:
    """Patches torch for the rest of this process. Raises RuntimeError if is_supported() is False."""
    if State.library is not None:
        return
    State.library = load_library()
    State.library.install(num_devices())
    manual_seed(torch.initial_seed())
    patch_torch_cuda()
    patch_torch_distributed()
    register_optimizer_step_post_hook(lambda *_: State.recorder.after_optimizer_step())
    torch.accelerator.synchronize = torch.cuda.synchronize
    torch.inference_mode = inference_mode
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention
    torch.utils._foreach_utils._foreach_supported_types.append(SimulatedTensor)


@contextlib.contextmanager
def simulated_gpu():
    """A context in which "cuda" is the simulated GPU. Yields its Recorder."""
    install()
    previous, State.recorder = State.recorder, Recorder()
    try:
        # The backward pass runs in the calling thread, so that its operations have the caller's frames.
        with torch.autograd.set_multithreading_enabled(False), SimulatedGpuMode():
            yield State.recorder
    finally:
        State.recorder = previous


def run_program(path: str) -> None:
    """Imports a program, calls its main() as torchrun's scripts do, and writes the report, also after an error."""
    sys.modules["simulated_gpu"] = sys.modules[__name__]
    sys.path[:1] = [str(Path(path).resolve().parent), str(ROOT)]
    exit_code = 0
    with simulated_gpu() as recorder:
        try:
            specification = importlib.util.spec_from_file_location(Path(path).stem, Path(path).resolve())
            program = importlib.util.module_from_spec(specification)
            sys.modules[specification.name] = program
            specification.loader.exec_module(program)
            record(program.main)()
        except SystemExit as error:
            exit_code = error.code if isinstance(error.code, int) else int(error.code is not None)
            raise
        except BaseException:
            exit_code = 1
            raise
        finally:
            if "SIMULATED_GPU_REPORT" in os.environ:
                suffix = f".{os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
                text = json.dumps(recorder.report(exit_code), indent=1)
                Path(os.environ["SIMULATED_GPU_REPORT"] + suffix).write_text(text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.argv.pop(0)
    run_program(sys.argv[0])
