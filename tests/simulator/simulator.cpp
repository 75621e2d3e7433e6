// A device for PyTorch that is the CPU under another name: torch's PrivateUse1 key, with several
// devices whose memory is the host's. torch_sdaa/__init__.py renames it to sdaa.
//
// Almost every operator takes one way: sdaa arguments become CPU tensors over the same memory, the
// CPU's kernel runs, and what it returns becomes sdaa tensors over the memory it made. Nothing is
// copied, so in-place operators, out= and batch norm's running statistics behave as on the CPU.
//
// Refused, as on the cards: float64 on the device, tensors of two devices in one operator.
// Everything is synchronous: this shows that device handling is right, not that waiting is.

#include <ATen/EmptyTensor.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/profiler/stubs/base.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKeySet;
using c10::Stream;
constexpr auto SDAA = c10::DeviceType::PrivateUse1;
constexpr int MOST_DEVICES = 64;

// --- devices ----------------------------------------------------------------------------------

// A card, or as many as SDAA_SIMULATOR_DEVICES says; SDAA_VISIBLE_DEVICES chooses among them.
DeviceIndex count_devices() {
  const char* there = std::getenv("SDAA_SIMULATOR_DEVICES");
  const long machine = std::min<long>(there == nullptr ? 4 : std::atol(there), MOST_DEVICES);
  const char* visible = std::getenv("SDAA_VISIBLE_DEVICES");
  if (visible == nullptr) return DeviceIndex(machine);
  DeviceIndex count = 0;
  for (const char* at = visible; *at != 0;) {
    char* end = nullptr;
    const long index = std::strtol(at, &end, 10);
    if (end == at || (*end != 0 && *end != ',')) return 0;
    if (index >= 0 && index < machine) ++count;
    at = *end == ',' ? end + 1 : end;
  }
  return count;
}

DeviceIndex device_count() {
  static const DeviceIndex count = count_devices();
  return count;
}

thread_local DeviceIndex current = 0;

DeviceIndex exchange(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "sdaa:", int(index),
              " is not there: this machine has ",
              int(device_count()), " SDAA devices");
  return std::exchange(current, index);
}

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return SDAA; }
  Device exchangeDevice(Device to) const override { return Device(SDAA, exchange(to.index())); }
  Device getDevice() const override { return Device(SDAA, current); }
  void setDevice(Device to) const override { exchange(to.index()); }
  void uncheckedSetDevice(Device to) const noexcept override { current = to.index(); }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }
  // One stream a device, on which everything is over when the call returns.
  Stream getStream(Device of) const override { return Stream(Stream::DEFAULT, of); }
  Stream getDefaultStream(Device of) const override { return getStream(of); }
  Stream getStreamFromGlobalPool(Device of, bool) const override { return getStream(of); }
  Stream getNewStream(Device of, int) const override { return getStream(of); }
  Stream exchangeStream(Stream to) const override { return getStream(to.device()); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  // An event is the time at which it was recorded, in nanoseconds.
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new int64_t;
    *static_cast<int64_t*>(*event) = now();
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<int64_t*>(event);
  }
  double elapsedTime(void* first, void* second, const DeviceIndex) const override {
    return double(*static_cast<int64_t*>(second) - *static_cast<int64_t*>(first)) / 1e6;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// --- memory -----------------------------------------------------------------------------------

std::array<std::atomic<int64_t>, MOST_DEVICES> held, peak;

void account(DeviceIndex device, int64_t bytes) {
  const int64_t total = held[device] += bytes;
  int64_t most = peak[device];
  while (total > most && !peak[device].compare_exchange_weak(most, total)) {
  }
}

// What stands behind a storage on the device: memory of its own, or a CPU kernel's result.
struct Block {
  void* own = nullptr;
  c10::Storage result;
  int64_t bytes = 0;
  DeviceIndex device = 0;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  account(block->device, -block->bytes);
  std::free(block->own);
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK(device_count() > 0, "there is no SDAA device");
    auto* block = new Block{nullptr, {}, int64_t(bytes), current};
    if (bytes != 0) TORCH_CHECK(posix_memalign(&block->own, 64, bytes) == 0, "out of memory");
    account(current, int64_t(bytes));
    return {block->own, block, &release, Device(SDAA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(SDAA, &allocator);

// --- random numbers ---------------------------------------------------------------------------

// What the CPU's kernels draw from in place of a device's generator.
at::Generator& generator(DeviceIndex device) {
  static std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < MOST_DEVICES; ++i) made.push_back(at::detail::createCPUGenerator());
    return made;
  }();
  return all.at(device);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return device_count(); }
  void setCurrentDevice(DeviceIndex index) const override { exchange(index); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchange(index); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), bytes);
  }
};

// --- one memory, two names --------------------------------------------------------------------

void refuse_double(c10::ScalarType type) {
  TORCH_CHECK_TYPE(type != at::kDouble && type != at::kComplexDouble,
                   "SDAA has no float64: keep it on the CPU, or use float32");
}

Tensor tensor_over(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key),
                                                         like.dtype());
  made.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  if (like.is_conj()) made._set_conj(true);
  return made;
}

// A CPU tensor over the memory of one on the device.
Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != SDAA) return tensor;
  const c10::Storage& storage = tensor.storage();
  auto* keeper = new c10::Storage(storage);
  const auto drop = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  c10::DataPtr data(storage.data_ptr().get(), keeper, drop, Device(c10::kCPU));
  c10::Storage alias(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data),
                     c10::GetCPUAllocator(), /*resizable=*/true);
  return tensor_over(std::move(alias), c10::DispatchKey::CPU, tensor);
}

// A tensor on the device over the memory that a CPU kernel made.
Tensor on_device(const Tensor& result, DeviceIndex device) {
  if (!result.defined()) return result;
  refuse_double(result.scalar_type());
  TORCH_CHECK(result.layout() == at::kStrided, "SDAA has no sparse tensors");
  const c10::Storage& storage = result.storage();
  auto* block = new Block{nullptr, storage, int64_t(storage.nbytes()), device};
  account(device, block->bytes);
  c10::DataPtr data(storage.data_ptr().get(), block, &release, Device(SDAA, device));
  c10::Storage made(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), &allocator,
                    /*resizable=*/true);
  return tensor_over(std::move(made), c10::DispatchKey::PrivateUse1, result);
}

// The arguments of one call: what they were on the device and what the CPU's kernel was given.
class Call {
 public:
  explicit Call(const c10::FunctionSchema& schema) : schema_(schema) {}

  Tensor take(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != SDAA) {
      cpu_tensor_ = cpu_tensor_ || tensor.dim() > 0;
      return tensor;
    }
    TORCH_CHECK(device_ == -1 || device_ == tensor.device().index(), schema_.name(),
                ": tensors are on sdaa:", int(device_), " and ", tensor.device());
    device_ = tensor.device().index();
    pairs_.emplace_back(tensor, on_cpu(tensor));
    return pairs_.back().second;
  }

  void take(Device device) { device_ = device.has_index() ? device.index() : current; }
  DeviceIndex device() const { return device_ == -1 ? current : device_; }

  void check_places() const {
    // Indices may be on the host, and so may scalars.
    const bool indexing = schema_.name().find("index") != std::string::npos;
    TORCH_CHECK(pairs_.empty() || !cpu_tensor_ || indexing, schema_.name(),
                ": some tensors are on the CPU and some on sdaa:", int(device_));
  }

  // Follow the CPU's kernel where it gave an out= argument another size.
  void settle() const {
    for (const auto& [tensor, alias] : pairs_) {
      if (tensor.sizes() == alias.sizes() && tensor.strides() == alias.strides()) continue;
      c10::DeviceGuard guard(tensor.device());
      auto* impl = tensor.unsafeGetTensorImpl();
      const size_t bytes = alias.storage().nbytes();
      if (alias.storage().data() != tensor.storage().data()) {
        if (bytes > tensor.storage().nbytes()) {
          at::native::resize_bytes_cpu(tensor.storage().unsafeGetStorageImpl(), bytes);
        }
        allocator.copy_data(tensor.storage().mutable_data(), alias.storage().data(), bytes);
      }
      impl->set_sizes_and_strides(alias.sizes(), alias.strides());
    }
  }

  Tensor give(const Tensor& result) const {
    if (!result.defined() || !result.device().is_cpu()) return result;
    for (const auto& [tensor, alias] : pairs_) {
      if (alias.is_same(result)) return tensor;
      if (result.layout() == at::kStrided &&
          alias.storage().unsafeGetStorageImpl() == result.storage().unsafeGetStorageImpl()) {
        return tensor_over(tensor.storage(), c10::DispatchKey::PrivateUse1, result);
      }
    }
    return on_device(result, device());
  }

 private:
  const c10::FunctionSchema& schema_;
  std::vector<std::pair<Tensor, Tensor>> pairs_;
  DeviceIndex device_ = -1;
  bool cpu_tensor_ = false;
};

bool is_generator(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return (optional ? optional->getElementType() : type)->kind() == c10::TypeKind::GeneratorType;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call(schema);
  const size_t first = stack->size() - schema.arguments().size();
  for (size_t i = first; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.take(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(call.take(each));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& each : value.toOptionalTensorList()) {
        list.push_back(each.has_value() ? std::optional<Tensor>(call.take(*each)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice()) {
      call.take(value.toDevice());
      value = Device(c10::kCPU);
    }
  }
  for (size_t i = first; i < stack->size(); ++i) {
    if ((*stack)[i].isNone() && is_generator(schema.arguments()[i - first].type())) {
      (*stack)[i] = generator(call.device());
    }
  }
  call.check_places();
  op.redispatchBoxed(DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.settle();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.give(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(call.give(each));
      value = list;
    }
  }
}

// --- what a backend must bring itself ---------------------------------------------------------

using Sizes = at::IntArrayRef;
template <typename T>
using Maybe = std::optional<T>;

Device target(Maybe<Device> device) {
  return Device(SDAA, device && device->has_index() ? device->index() : current);
}

const DispatchKeySet ON_DEVICE(c10::DispatchKey::PrivateUse1);

Tensor empty(Sizes size, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<Device> device,
             Maybe<bool>, Maybe<at::MemoryFormat> format) {
  const auto type = c10::dtype_or_default(dtype);
  refuse_double(type);
  c10::DeviceGuard guard(target(device));
  return at::detail::empty_generic(size, &allocator, ON_DEVICE, type, format);
}

Tensor empty_strided(Sizes size, Sizes stride, Maybe<at::ScalarType> dtype, Maybe<at::Layout>,
                     Maybe<Device> device, Maybe<bool>) {
  const auto type = c10::dtype_or_default(dtype);
  refuse_double(type);
  c10::DeviceGuard guard(target(device));
  return at::detail::empty_strided_generic(size, stride, &allocator, ON_DEVICE, type);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const Tensor& resize(const Tensor& self, Sizes size, Maybe<at::MemoryFormat> format) {
  c10::DeviceGuard guard(self.device());
  return at::native::resize_(self, size, format);
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& self) {
  return at::_local_scalar_dense(on_cpu(self));
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, Sizes size, Sizes stride) {
  return at::cpu::set_(self, std::move(source), offset, size, stride);
}

// Convolutions of float16 add up in float32, as a matrix unit does; the CPU's own are slow.
Tensor summed_wide(const Tensor& tensor) {
  const Tensor cpu = on_cpu(tensor);
  return cpu.defined() && cpu.scalar_type() == at::kHalf ? cpu.to(at::kFloat) : cpu;
}

Tensor narrowed(const Tensor& result, const Tensor& like) {
  const Tensor cast = result.defined() ? result.to(like.scalar_type()) : result;
  return on_device(cast, like.device().index());
}

Tensor convolution(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias,
                   Sizes stride, Sizes padding, Sizes dilation, bool transposed,
                   Sizes output_padding, int64_t groups) {
  Maybe<Tensor> wide_bias;
  if (bias.has_value()) wide_bias = summed_wide(*bias);
  const Tensor result =
      at::convolution(summed_wide(input), summed_wide(weight), wide_bias, stride, padding,
                      dilation, transposed, output_padding, groups);
  return narrowed(result, input);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, Sizes stride, Sizes padding,
    Sizes dilation, bool transposed, Sizes output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  const std::vector<int64_t> bias_size = {grad.size(1)};
  const auto [for_input, for_weight, for_bias] = at::convolution_backward(
      summed_wide(grad), summed_wide(input), summed_wide(weight),
      at::OptionalIntArrayRef(bias_size), stride, padding, dilation, transposed, output_padding,
      groups, mask);
  return {narrowed(for_input, input), narrowed(for_weight, input), narrowed(for_bias, input)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// --- autocast: CUDA's lists -------------------------------------------------------------------

using namespace at::autocast;
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(FULL)
#define FULL_UNLESS_TOLD(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_UNLESS_TOLD)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(WIDEST)
}

// --- torch's profiler -------------------------------------------------------------------------

struct Stubs final : torch::profiler::impl::ProfilerStubs {
  using Event = torch::profiler::impl::ProfilerVoidEventStub;
  void record(DeviceIndex* device, Event* event, int64_t* cpu_ns) const override {
    if (device != nullptr) *device = current;
    if (cpu_ns != nullptr) *cpu_ns = now();
    *event = std::make_shared<int64_t>(now());
  }
  float elapsed(const Event* first, const Event* second) const override {  // microseconds
    const auto time = [](const Event* event) { return *static_cast<int64_t*>(event->get()); };
    return float(time(second) - time(first)) / 1e3F;
  }
  void mark(const char*) const override {}
  void rangePush(const char*) const override {}
  void rangePop() const override {}
  bool enabled() const override { return true; }
  void onEachDevice(std::function<void(int)> op) const override {
    for (int index = 0; index < device_count(); ++index) op(index);
  }
  void synchronize() const override {}
};
Stubs stubs;

// --- for torch_sdaa ---------------------------------------------------------------------------

TORCH_LIBRARY(sdaa_simulator, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  torch::profiler::impl::registerPrivateUse1Methods(&stubs);
  m.def("device_count() -> int", []() -> int64_t { return device_count(); });
  m.def("current_device() -> int", []() -> int64_t { return current; });
  m.def("set_device(int index) -> ()", [](int64_t index) { exchange(DeviceIndex(index)); });
  m.def("memory(int index) -> int", [](int64_t index) -> int64_t { return held.at(index); });
  m.def("peak(int index) -> int", [](int64_t index) -> int64_t { return peak.at(index); });
  m.def("reset_peak(int index) -> ()",
        [](int64_t index) { peak.at(index) = held.at(index).load(); });
  m.def("seed(int index, int seed) -> ()", [](int64_t index, int64_t seed) {
    generator(DeviceIndex(index)).set_current_seed(uint64_t(seed));
  });
  m.def("initial_seed(int index) -> int", [](int64_t index) -> int64_t {
    return int64_t(generator(DeviceIndex(index)).current_seed());
  });
  m.def("rng_state(int index) -> Tensor",
        [](int64_t index) { return generator(DeviceIndex(index)).get_state(); });
  m.def("set_rng_state(int index, Tensor state) -> ()", [](int64_t index, const Tensor& state) {
    generator(DeviceIndex(index)).set_state(state);
  });
  m.def("on_cpu(Tensor tensor) -> Tensor", &on_cpu);
}

}  // namespace
