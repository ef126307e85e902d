// CUDA tensors whose memory is main memory: every operation on them is done by the CPU's kernel, and one that is given tensors of
// both devices is refused as on a GPU. Types, storages, dispatch keys, the move from one device to the other and the thread of the
// backward pass are those of a GPU.

#include <torch/library.h>

#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/op_registration/op_registration.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <set>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
const c10::Device HERE(CUDA, 0), MAIN(c10::DeviceType::CPU);

// What is counted. An operation that waits for the device is one that brings numbers from it.
std::atomic<int64_t> in_use{0}, most{0}, limit{int64_t(1) << 40}, launches{0}, waits{0}, bytes_in{0}, bytes_out{0};

// Memory ----------------------------------------------------------------------------------------------------------------------

struct Block {
  c10::DataPtr data;
  size_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  in_use -= static_cast<int64_t>(block->size);
  delete block;
}

void reserve(size_t size) {
  const auto now = in_use += static_cast<int64_t>(size);
  if (now > limit) {
    in_use -= static_cast<int64_t>(size);
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", size, " bytes on a pretended GPU.");
  }
  auto before = most.load();
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
}

// `data` as memory of the device.
c10::DataPtr on_device(c10::DataPtr data, size_t size) {
  reserve(size);
  void* place = data.get();
  return {place, new Block{std::move(data), size}, release, HERE};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override { return on_device(c10::GetCPUAllocator()->allocate(size), size); }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} allocator;

void forget(void* context) { delete static_cast<c10::Storage*>(context); }

// The storage's memory under another device's name; it lives as long as somebody uses it.
c10::Storage shared(const c10::Storage& storage, c10::Device device) {
  void* place = const_cast<void*>(storage.data());
  const auto size = storage.nbytes();
  c10::DataPtr data(place, new c10::Storage(storage), forget, device);
  return {c10::Storage::use_byte_size_t(), size, std::move(data), c10::GetCPUAllocator(), true};
}

at::Tensor formed(at::Tensor made, const at::Tensor& like) {
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  return made;
}

at::Tensor over(c10::Storage storage, const at::Tensor& like, c10::DispatchKey key) {
  return formed(at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype()), like);
}

// A view of `base` is an inference tensor where that is one, whatever the mode.
at::Tensor view(const at::Tensor& base, const at::Tensor& like) {
  auto storage = base.storage();
  return formed(
      at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), base.key_set(), like.dtype()), like);
}

// Generators ------------------------------------------------------------------------------------------------------------------

struct Random final : c10::GeneratorImpl {
  explicit Random(at::Generator inner)
      : c10::GeneratorImpl(HERE, c10::DispatchKeySet(c10::DispatchKey::CUDA)), numbers(std::move(inner)) {}
  void set_current_seed(uint64_t seed) override { numbers.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { numbers.set_offset(offset); }
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return numbers.current_seed(); }
  uint64_t seed() override { return numbers.seed(); }
  void set_state(const c10::TensorImpl& state) override { numbers.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return numbers.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override { return new Random(numbers.clone()); }
  at::Generator numbers;
};

at::Generator new_generator() {
  return at::make_generator<Random>(at::globalContext().defaultGenerator(MAIN).clone());
}

// Every operation -------------------------------------------------------------------------------------------------------------

const std::set<std::string> MIXED = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::index_put",
                                     "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_copy_from", "aten::set_",
                                     "aten::unsafe_index_put"};
const std::set<std::string> READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"};

struct Given {
  at::Tensor theirs, mine;
};

class Call {
 public:
  bool device_named = false, to_main = false, any_there = false;

  c10::IValue enter(const c10::IValue& value) {
    if (value.isTensor()) {
      return value.toTensor().defined() ? c10::IValue(enter(value.toTensor())) : value;
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& one : value.toTensorVector()) {
        out.push_back(one.defined() ? enter(one) : one);
      }
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (const std::optional<at::Tensor> one : value.toOptionalTensorList()) {
        out.push_back(one.has_value() && one->defined() ? std::optional<at::Tensor>(enter(*one)) : one);
      }
      return out;
    }
    if (value.isDevice()) {
      device_named = true;
      to_main = value.toDevice().type() != CUDA;
      return c10::Device(MAIN);
    }
    if (value.isGenerator() && value.toGenerator().device().type() == CUDA) {
      return static_cast<Random*>(value.toGenerator().unsafeGetGeneratorImpl())->numbers;
    }
    return value;
  }

  c10::IValue leave(const c10::IValue& value) {
    if (value.isTensor()) {
      return value.toTensor().defined() ? c10::IValue(leave(value.toTensor())) : value;
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& one : value.toTensorVector()) {
        out.push_back(one.defined() ? leave(one) : one);
      }
      return out;
    }
    return value;
  }

  void refuse_mixed(const std::string& name) const {
    if (any_there && main_only.defined() && !MIXED.count(name)) {
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name,
                  ", ", main_only.sizes(), ")");
    }
  }

  // What an operation changed of its inputs besides their numbers.
  void carry_back() {
    for (auto& [theirs, mine] : given) {
      auto* impl = theirs.unsafeGetTensorImpl();
      if (mine.storage().data() != theirs.storage().data() || mine.storage().nbytes() != theirs.storage().nbytes()) {
        auto storage = mine.storage();
        auto size = storage.nbytes();
        void* place = const_cast<void*>(storage.data());
        c10::DataPtr data(place, new c10::Storage(storage), forget, MAIN);
        impl->set_storage_keep_dtype(
            {c10::Storage::use_byte_size_t(), size, on_device(std::move(data), size), &allocator, true});
      }
      if (mine.sizes() != theirs.sizes() || mine.strides() != theirs.strides() ||
          mine.storage_offset() != theirs.storage_offset()) {
        impl->set_storage_offset(mine.storage_offset());
        impl->set_sizes_and_strides(mine.sizes(), mine.strides());
      }
    }
  }

 private:
  std::vector<Given> given;
  at::Tensor main_only;

  at::Tensor enter(const at::Tensor& tensor) {
    if (!tensor.is_cuda()) {
      if (tensor.dim() > 0 && tensor.device().is_cpu()) {
        main_only = tensor;
      }
      return tensor;
    }
    any_there = true;
    for (auto& one : given) {
      if (one.theirs.is_same(tensor)) {
        return one.mine;
      }
    }
    given.push_back({tensor, over(shared(tensor.storage(), MAIN), tensor, c10::DispatchKey::CPU)});
    return given.back().mine;
  }

  at::Tensor leave(const at::Tensor& tensor) {
    for (auto& one : given) {
      if (one.mine.is_same(tensor)) {
        return one.theirs;
      }
    }
    const bool stays = device_named ? to_main : !any_there;
    if (stays || !tensor.device().is_cpu()) {
      return tensor;
    }
    for (auto& one : given) {
      if (one.mine.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl()) {
        return view(one.theirs, tensor);
      }
    }
    const auto size = tensor.storage().nbytes();
    void* place = const_cast<void*>(tensor.storage().data());
    c10::DataPtr data(place, new c10::Storage(tensor.storage()), forget, MAIN);
    c10::Storage storage(c10::Storage::use_byte_size_t(), size, on_device(std::move(data), size), &allocator, true);
    return over(std::move(storage), tensor, c10::DispatchKey::CUDA);
  }
};

void moved(const at::Tensor& from, bool to_device, bool at_once) {
  if (from.is_cuda() == to_device) {
    return;
  }
  (to_device ? bytes_in : bytes_out) += static_cast<int64_t>(from.nbytes());
  waits += !to_device && at_once;
}

void through_main(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const size_t first = stack->size() - op.schema().arguments().size();
  at::AutoDispatchBelowADInplaceOrView below;
  launches += 1;
  waits += READS.count(name);
  if (name == "aten::copy_") {
    moved((*stack)[first + 1].toTensor(), (*stack)[first].toTensor().is_cuda(), !(*stack)[first + 2].toBool());
  }
  const auto source = name == "aten::_to_copy" ? (*stack)[first].toTensor() : at::Tensor();
  const bool at_once = source.defined() && !(*stack)[first + 5].toBool();
  Call call;
  for (size_t i = first; i < stack->size(); i++) {
    (*stack)[i] = call.enter((*stack)[i]);
  }
  call.refuse_mixed(name);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.carry_back();
  if (source.defined() && call.device_named) {
    moved(source, !call.to_main, at_once);
  }
  const size_t results = stack->size() - op.schema().returns().size();
  for (size_t i = results; i < stack->size(); i++) {
    (*stack)[i] = call.leave((*stack)[i]);
  }
}

// Attention as a GPU's fused kernel has it: no probabilities are kept.

int64_t choice(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& mask,
               double, bool, std::optional<double>, bool) {
  const bool learns = mask.has_value() && mask->defined() && mask->requires_grad();
  const bool alike = query.dim() == 4 && query.size(1) == key.size(1) && query.size(3) == value.size(3);
  return learns || !alike ? 0 : 2;  // math : memory-efficient
}

// Names of the arguments are torch's.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& attn_bias,
    bool, double dropout_p, bool is_causal, std::optional<double> scale) {
  auto [out, sums] =
      at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, attn_bias, scale);
  return {out, sums, at::empty({}, at::kLong), at::empty({}, at::kLong)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_back(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& attn_bias, const at::Tensor& out, const at::Tensor& logsumexp, const at::Tensor&, const at::Tensor&,
    double dropout_p, std::array<bool, 4>, bool is_causal, std::optional<double> scale) {
  const auto mask = attn_bias.defined() ? std::optional<at::Tensor>(attn_bias) : std::nullopt;
  auto [to_query, to_key, to_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, mask, scale);
  return {to_query, to_key, to_value, at::Tensor()};
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  TORCH_CHECK(source.device().type() == CUDA, "the storage lies on another device than the tensor");
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  impl->set_sizes_and_strides(size, stride);
  return self;
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&through_main>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  const std::set<std::string> own = {"_fused_sdp_choice", "_scaled_dot_product_efficient_attention",
                                     "_scaled_dot_product_efficient_attention_backward"};
  // A kernel for every device would be asked before the fallback, and find no CUDA code for its inner loops.
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 || own.count(name.name.substr(6))) {
      continue;
    }
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    const bool storage = name.name == "aten::set_" && name.overload_name == "source_Storage_storage_offset";
    const bool whole = op && !storage && (op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                              op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional));
    if (whole) {
      const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
      m.impl(full.c_str() + 6, torch::CppFunction::makeFromBoxedFunction<&through_main>());
    }
  }
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("_fused_sdp_choice", &choice);
  m.impl("_scaled_dot_product_efficient_attention", &attention);
  m.impl("_scaled_dot_product_efficient_attention_backward", &attention_back);
}

// The device ------------------------------------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

[[maybe_unused]] const c10::impl::DeviceGuardImplRegistrar guard(CUDA, new Guard());

}  // namespace

namespace at {

// The registry knows the hooks by this name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) { c10::SetAllocator(c10::DeviceType::CUDA, &allocator); }
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return HERE; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator generator = new_generator();
    return generator;
  }
  void deviceSynchronize(DeviceIndex) const override { waits += 1; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

// Stands before torch's own, which a build without CUDA has decided already; so the library is loaded before torch.
namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace accelerator

}  // namespace at

extern "C" {
void start() {
  c10::SetAllocator(c10::DeviceType::CUDA, &allocator);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choice);
}
int64_t get_in_use() { return in_use; }
int64_t get_most() { return most; }
void forget_most() { most = in_use.load(); }
void set_limit(int64_t bytes) { limit = bytes; }
int64_t get_launches() { return launches; }
int64_t get_waits() { return waits; }
int64_t get_bytes_in() { return bytes_in; }
int64_t get_bytes_out() { return bytes_out; }
}
