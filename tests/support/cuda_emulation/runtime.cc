// SPDX-License-Identifier: Apache-2.0
// The few functions of the CUDA runtime that the backend calls, over host memory. Everything but
// graphs (graphs.h) is done when a call returns. Of its devices there are two, alike, if nobody
// says more.
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/support/cuda_emulation/graphs.h"
#include "tests/support/cuda_emulation/memory.h"

using std::chrono::steady_clock;
using trireme::cuda::emulation::choose_device;
using trireme::cuda::emulation::chosen_device;
using trireme::cuda::emulation::DeviceAccess;
using trireme::cuda::emulation::perform;
using trireme::cuda::emulation::spoils_recording;
using trireme::cuda::emulation::Stream;
using trireme::cuda::emulation::wait_for_stream;

namespace {
std::atomic<bool> stalled{false};
std::atomic<int> num_devices{2};

// Of what a recording thread may not do.
cudaError_t unless_recording() {
  return spoils_recording() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
}  // namespace

void trireme::cuda::emulation::stall_events(bool value) { stalled = value; }
void trireme::cuda::emulation::set_num_devices(int count) { num_devices = count; }

extern "C" {

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  *data = std::malloc(bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  return cudaMallocHost(data, bytes);
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  perform(stream, [=] {
    const DeviceAccess access;
    std::memset(data, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void* data, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  perform(stream, [=] {
    const DeviceAccess access;
    for (size_t row = 0; row < height; ++row) {
      std::memset(static_cast<char*>(data) + row * pitch, value, width);
    }
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  perform(stream, [=] {
    const DeviceAccess access;
    std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  perform(stream, [=] {
    const DeviceAccess access;
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch,
                  static_cast<const char*>(from) + row * from_pitch, width);
    }
  });
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (spoils_recording()) return cudaErrorStreamCaptureUnsupported;
  wait_for_stream(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (spoils_recording()) return cudaErrorStreamCaptureUnsupported;
  const bool busy = reinterpret_cast<Stream*>(stream)->busy();
  return stalled || busy ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new steady_clock::time_point);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  wait_for_stream(stream);
  *reinterpret_cast<steady_clock::time_point*>(event) = steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  *ms =
      std::chrono::duration<float, std::milli>(*reinterpret_cast<steady_clock::time_point*>(end) -
                                               *reinterpret_cast<steady_clock::time_point*>(begin))
          .count();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return stalled ? cudaErrorNotReady : unless_recording(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<steady_clock::time_point*>(event);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated runtime"; }

cudaError_t cudaSetDevice(int device) {
  choose_device(device);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device();
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = num_devices;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  unsigned bus = 0;
  if (std::sscanf(id, "0000:%x:00.0", &bus) != 1 || bus < 1) return cudaErrorInvalidValue;
  *device = static_cast<int>(bus) - 1;
  return *device < num_devices ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceCanAccessPeer(int* possible, int, int) {
  *possible = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated");
  properties->totalGlobalMem = trireme::cuda::emulation::kMemoryBytes;
  properties->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  std::snprintf(id, static_cast<size_t>(bytes), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

}  // extern "C"
