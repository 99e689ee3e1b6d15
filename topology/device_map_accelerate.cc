// SPDX-License-Identifier: Apache-2.0
#include "topology/device_map_accelerate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace trireme {
namespace {

struct Module {
  std::string name;
  double bytes = 0;           // with all that is below
  bool whole = false;         // a layer: never split
  std::vector<int> children;  // in the order of their definition
};

// The modules of the model's class as a tree; the root is the model itself.
class ModuleTree {
 public:
  ModuleTree(const ModelSpec& model, DType dtype) {
    modules_.emplace_back();
    const double size = static_cast<double>(element_size(dtype));
    units_.resize(static_cast<size_t>(model.modules_size()) + 1);
    for (int index = 0; index < model.modules_size(); ++index) {
      if (index == model.rotary_index()) add_rotary(model, size);
      const bool layer =
          index >= first_layer(model) && index < first_layer(model) + model.num_layers();
      const ModuleSpec& unit = model.modules(index);
      units_[static_cast<size_t>(index)] =
          add(unit.name(), static_cast<double>(unit.parameters()) * size, layer);
      if (unit.parameters() > 0) leaves_ += layer ? modules_in_layer(model) : 1;
      if (layer) layer_bytes_ = modules_[static_cast<size_t>(unit_node(index))].bytes;
    }
  }

  const Module& at(int node) const { return modules_[static_cast<size_t>(node)]; }
  const Module& root() const { return modules_.front(); }
  int unit_node(int unit) const { return units_[static_cast<size_t>(unit)]; }
  int num_units() const { return static_cast<int>(units_.size()); }
  double layer_bytes() const { return layer_bytes_; }
  // Of the modules that hold tensors themselves, as an integer.
  double mean_leaf_bytes() const { return std::trunc(root().bytes / std::max(leaves_, 1)); }

 private:
  static int first_layer(const ModelSpec& model) { return model.prefix_length() > 0 ? 2 : 1; }

  static int modules_in_layer(const ModelSpec& model) {
    std::set<std::string> modules;
    for (const std::string& tensor : model.layer_tensors()) {
      modules.insert(tensor.substr(0, tensor.rfind('.')));
    }
    return static_cast<int>(modules.size());
  }

  // Tables are made in fp32, and are counted in the smaller of that and the weights' type.
  void add_rotary(const ModelSpec& model, double size) {
    units_.back() =
        add(model.rotary().name(),
            static_cast<double>(model.rotary().parameters()) * std::min(size, 4.0), false);
    ++leaves_;
  }

  int add(const std::string& name, double bytes, bool layer) {
    int node = 0;
    modules_[0].bytes += bytes;
    for (size_t end = 0; end != std::string::npos;) {
      end = name.find('.', end == 0 ? 0 : end + 1);
      node = child(node, name.substr(0, end));
      modules_[static_cast<size_t>(node)].bytes += bytes;
    }
    modules_[static_cast<size_t>(node)].whole = layer;
    return node;
  }

  int child(int parent, const std::string& name) {
    for (const int node : at(parent).children) {
      if (at(node).name == name) return node;
    }
    const auto node = static_cast<int>(modules_.size());
    modules_.push_back({name, 0, false, {}});
    modules_[static_cast<size_t>(parent)].children.push_back(node);
    return node;
  }

  std::vector<Module> modules_;
  std::vector<int> units_;  // nodes of model.modules(), and of the rotary embedding
  int leaves_ = 0;
  double layer_bytes_ = 0;
};

// infer_auto_device_map(), whose names are kept where they can be.
class Walk {
 public:
  Walk(const ModelSpec& model, const ModuleTree& tree, const std::vector<AccelerateDevice>& budgets)
      : tree_(tree), budgets_(budgets), used_(budgets.size()), treat_(tree.root().children) {
    if (model.tied_embeddings()) {
      tied_ = {model.modules(0).name() + ".weight",
               model.modules(model.modules_size() - 1).name() + ".weight"};
    }
    find_largest(treat_);
  }

  std::map<int, int> run() {
    while (!treat_.empty()) {
      const int node = treat_.front();
      treat_.erase(treat_.begin());
      step(node);
    }
    return device_of_;
  }

 private:
  bool on_disk() const { return current_ == budgets_.size(); }

  // The first GPU and the CPU keep room for the largest layer that is still to come: one that was
  // offloaded is brought there for its turn.
  bool keeps_room() const { return !on_disk() && (current_ == 0 || budgets_[current_].offload); }

  // The largest module that cannot be split, and who is as large.
  void find_largest(std::vector<int> modules) {
    largest_ = 0;
    largest_nodes_.clear();
    while (!modules.empty()) {
      const int node = modules.front();
      modules.erase(modules.begin());
      const Module& module = tree_.at(node);
      if (!module.children.empty() && !module.whole) {
        modules.insert(modules.begin(), module.children.begin(), module.children.end());
        continue;
      }
      if (module.bytes > largest_) {
        largest_ = module.bytes;
        largest_nodes_.clear();
      }
      if (module.bytes == largest_) largest_nodes_.push_back(node);
    }
  }

  bool below(int node, const std::string& name) const {
    return tree_.at(node).name == name || tree_.at(node).name.starts_with(name + ".");
  }

  // Where the tensors wait that are tied to one of this module and are not of it.
  std::vector<int> tied_modules(const std::string& name) const {
    const auto inside = [&](const std::string& tensor) {
      return (tensor + ".").find(name + ".") != std::string::npos;
    };
    std::vector<int> found;
    if (!std::any_of(tied_.begin(), tied_.end(), inside)) return found;
    for (const std::string& tensor : tied_) {
      if (inside(tensor)) continue;
      for (const int node : treat_) {
        if (!tensor.starts_with(tree_.at(node).name + ".")) continue;
        found.push_back(node);
        break;
      }
    }
    return found;
  }

  double with_ties(double bytes, const std::vector<int>& tied) const {
    // The tied tensor itself is counted once, under the embedding: the other's own bytes are none.
    for (const int node : tied) {
      const Module& module = tree_.at(node);
      const bool holds_embedding = tied_.front().starts_with(module.name + ".");
      bytes += module.bytes - (holds_embedding ? tree_.at(tree_.unit_node(0)).bytes : 0);
    }
    return bytes;
  }

  void step(int node) {
    const Module& module = tree_.at(node);
    std::erase_if(largest_nodes_, [&](int other) { return below(other, module.name); });
    if (largest_nodes_.empty()) find_largest(treat_);
    const std::vector<int> tied = tied_modules(module.name);
    if (on_disk()) return put(node, tied, 0);
    const double room = budgets_[current_].bytes - (keeps_room() ? largest_ : 0);
    const double size = with_ties(module.bytes, tied);
    if (used_[current_] + size <= room) return put(node, tied, size);
    if (!tied.empty() && used_[current_] + module.bytes <= room && split_tied(node, tied)) return;
    if (used_[current_] + module.bytes >= room && !module.children.empty() && !module.whole) {
      treat_.insert(treat_.begin(), module.children.begin(), module.children.end());
      return find_largest(treat_);
    }
    ++current_;
    treat_.insert(treat_.begin(), node);
  }

  void put(int node, const std::vector<int>& tied, double bytes) {
    const int device = on_disk() ? kAccelerateDisk : static_cast<int>(current_);
    if (!on_disk()) used_[current_] += bytes;
    device_of_[node] = device;
    for (const int other : tied) {
      device_of_[other] = device;
      std::erase(treat_, other);
    }
  }

  // The module fits without what is tied to it: may the rest of that go elsewhere?
  bool split_tied(int node, const std::vector<int>& tied) {
    for (const int other : tied) {
      const Module& module = tree_.at(other);
      if (module.children.empty() || module.whole) continue;
      const auto at = std::find(treat_.begin(), treat_.end(), other);
      treat_.insert(treat_.erase(at), module.children.begin(), module.children.end());
      treat_.insert(treat_.begin(), node);
      find_largest(treat_);
      return true;
    }
    return false;
  }

  const ModuleTree& tree_;
  const std::vector<AccelerateDevice>& budgets_;
  std::vector<double> used_;
  std::vector<int> treat_;
  std::vector<std::string> tied_;  // the embedding's tensor and the head's, or none
  size_t current_ = 0;
  double largest_ = 0;
  std::vector<int> largest_nodes_;
  std::map<int, int> device_of_;
};

}  // namespace

std::optional<AccelerateStrategy> parse_accelerate_strategy(const std::string& name) {
  if (name == "balanced") return AccelerateStrategy::kBalanced;
  if (name == "balanced_low_0") return AccelerateStrategy::kBalancedLow0;
  if (name == "sequential") return AccelerateStrategy::kSequential;
  return std::nullopt;
}

std::vector<AccelerateDevice> accelerate_budgets(const ModelSpec& model, DType dtype,
                                                 AccelerateStrategy strategy,
                                                 std::vector<AccelerateDevice> devices,
                                                 bool given) {
  if (strategy == AccelerateStrategy::kSequential) return devices;
  std::vector<AccelerateDevice*> gpus;
  for (AccelerateDevice& device : devices) {
    if (!device.offload && device.bytes > 0) gpus.push_back(&device);
  }
  if (gpus.empty()) return devices;
  const bool low_0 = strategy == AccelerateStrategy::kBalancedLow0 && gpus.size() > 1;
  if (gpus.size() == 1 && !given) gpus.front()->bytes *= 0.9;

  const ModuleTree tree(model, dtype);
  const double shares = static_cast<double>(gpus.size()) - (low_0 ? 1 : 0);
  const double buffer = std::trunc(1.25 * std::max(tree.layer_bytes(), tree.mean_leaf_bytes()));
  const double share = std::floor(tree.root().bytes / shares) + buffer;
  // The last one keeps all that it has, should the buffer not be enough.
  for (size_t i = 0; i + 1 < gpus.size(); ++i) {
    if (low_0 && i == 0) continue;
    gpus[i]->bytes = std::min(share, gpus[i]->bytes);
  }
  if (low_0) {
    double others = 0;
    for (size_t i = 1; i < gpus.size(); ++i) others += gpus[i]->bytes;
    gpus[0]->bytes = std::min(std::max(0.0, tree.root().bytes - others), gpus[0]->bytes);
  }
  return devices;
}

std::vector<int> accelerate_map(const ModelSpec& model, DType dtype,
                                const std::vector<AccelerateDevice>& budgets) {
  const ModuleTree tree(model, dtype);
  const std::map<int, int> placed = Walk(model, tree, budgets).run();
  std::vector<int> devices;
  for (int unit = 0; unit < tree.num_units(); ++unit) {
    const std::string& name = tree.at(tree.unit_node(unit)).name;
    for (const auto& [node, device] : placed) {
      const std::string& holder = tree.at(node).name;
      if (name != holder && !name.starts_with(holder + ".")) continue;
      devices.push_back(device);
      break;
    }
  }
  return devices;
}

}  // namespace trireme
