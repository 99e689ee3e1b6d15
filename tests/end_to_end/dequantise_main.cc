// SPDX-License-Identifier: Apache-2.0
// dequantise TYPE COLS BEGIN COUNT < blocks > values: rows of COLS values stored as TYPE in; of
// each row the values [BEGIN, BEGIN + COUNT) as fp32 out. For dequantise_test.py.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "worker/model/quant.h"

int main(int argc, char** argv) {
  using namespace trireme;
  CHECK(argc == 5, "TYPE COLS BEGIN COUNT");
  const StoredType* type = find_stored_type(argv[1]);
  CHECK(type != nullptr && type->decode != nullptr, argv[1]);
  const int64_t cols = std::stoll(argv[2]);
  const int64_t begin = std::stoll(argv[3]);
  const int64_t count = std::stoll(argv[4]);
  CHECK(begin >= 0 && count > 0 && begin + count <= cols && cols % type->block_values == 0, "row");
  std::vector<std::byte> row(cols / type->block_values * type->block_bytes);
  std::vector<float> values(count);
  while (std::fread(row.data(), 1, row.size(), stdin) == row.size()) {
    convert_row(*type, row.data(), begin, Tensor(values.data(), DType::kF32, 1, count));
    if (std::fwrite(values.data(), sizeof(float), values.size(), stdout) != values.size()) return 1;
  }
  return 0;
}
