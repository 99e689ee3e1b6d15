// SPDX-License-Identifier: Apache-2.0
#include "topology/device_map_hf.h"

#include <algorithm>
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/nearest_name.h"
#include "topology/memory.h"
#include "topology/shard.h"
#include "topology/worker_names.h"

namespace trireme {
namespace {

constexpr int kAnyCpu = -2;  // "cpu", where several workers are

// What the stages are cut from, in the order of the forward pass: embedding, layers, norm, head.
struct Unit {
  std::string name;
  std::vector<std::string> tensors;
  double parameters = 0;
};

std::vector<Unit> list_units(const ModelSpec& model) {
  std::vector<Unit> units;
  for (int index = 0; index < model.modules_size(); ++index) {
    const ModuleSpec& module = model.modules(index);
    if (index == 1 && model.prefix_length() > 0) continue;  // every stage has its layers' part
    Unit unit{module.name(), {}, static_cast<double>(module.parameters())};
    const int layer = static_cast<int>(units.size()) - 1;
    if (layer < 0 || layer >= model.num_layers()) {
      unit.tensors.push_back(module.name() + ".weight");
    } else {
      for (const std::string& tensor : model.layer_tensors()) {
        unit.tensors.push_back(module.name() + "." + tensor);
      }
    }
    units.push_back(std::move(unit));
  }
  return units;
}

size_t head_of(const std::vector<Unit>& units) { return units.size() - 1; }
size_t norm_of(const std::vector<Unit>& units) { return units.size() - 2; }

std::string device_name(int worker) { return worker == kAnyCpu ? "cpu" : std::to_string(worker); }

// "embed_tokens, layers 0-9 on 0; layers 10-27, norm, lm_head on 1"
std::string describe(const std::vector<Unit>& units, const std::vector<int>& workers) {
  std::string text;
  for (size_t begin = 0; begin < units.size();) {
    size_t end = begin;
    while (end < units.size() && workers[end] == workers[begin]) ++end;
    const size_t first = std::max<size_t>(begin, 1);
    const size_t stop = std::min(end, norm_of(units));
    std::vector<std::string> parts;
    if (begin == 0) parts.push_back(units.front().name);
    if (first < stop) {
      parts.push_back("layers " + std::to_string(first - 1) + "-" + std::to_string(stop - 2));
    }
    for (size_t unit = std::max(begin, norm_of(units)); unit < end; ++unit) {
      parts.push_back(units[unit].name);
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      text += (i > 0 ? ", " : text.empty() ? "" : "; ") + parts[i];
    }
    text += " on " + device_name(workers[begin]);
    begin = end;
  }
  return text;
}

// The devices in the order of their units' middles, each unit on the device that it was on wherever
// that keeps them in a row: as many units as can be stay.
std::vector<int> nearest_in_a_row(const std::vector<int>& wanted) {
  std::map<int, std::pair<double, int>> places;
  for (size_t unit = 0; unit < wanted.size(); ++unit) {
    places[wanted[unit]].first += static_cast<double>(unit);
    places[wanted[unit]].second += 1;
  }
  std::vector<int> devices;
  for (const auto& entry : places) devices.push_back(entry.first);
  std::sort(devices.begin(), devices.end(), [&](int a, int b) {
    return places[a].first / places[a].second < places[b].first / places[b].second;
  });
  // kept[d][u]: of the first u units, when they lie on the first d devices.
  const size_t num_devices = devices.size();
  const size_t num_units = wanted.size();
  std::vector<std::vector<int>> kept(num_devices + 1, std::vector<int>(num_units + 1, -1));
  std::vector<std::vector<size_t>> begins(num_devices + 1, std::vector<size_t>(num_units + 1, 0));
  kept[0][0] = 0;
  for (size_t d = 1; d <= num_devices; ++d) {
    for (size_t u = 0; u <= num_units; ++u) {
      int own = 0;
      for (size_t begin = u + 1; begin-- > 0;) {
        const bool layer = begin > 0 && begin + 2 < num_units;
        if (begin < u && wanted[begin] == devices[d - 1]) own += layer ? 2 : 1;
        if (kept[d - 1][begin] < 0 || kept[d - 1][begin] + own <= kept[d][u]) continue;
        kept[d][u] = kept[d - 1][begin] + own;
        begins[d][u] = begin;
      }
    }
  }
  std::vector<int> result(num_units);
  size_t end = num_units;
  for (size_t d = num_devices; d > 0; --d) {
    const size_t begin = begins[d][end];
    std::fill(result.begin() + static_cast<ptrdiff_t>(begin),
              result.begin() + static_cast<ptrdiff_t>(end), devices[d - 1]);
    end = begin;
  }
  return result;
}

void check_in_a_row(const std::string& source, const std::vector<Unit>& units,
                    const std::vector<int>& workers) {
  std::map<int, size_t> last;
  for (size_t unit = 0; unit < units.size(); ++unit) {
    const auto seen = last.find(workers[unit]);
    if (seen != last.end() && seen->second + 1 != unit) {
      throw Error(Code::kInvalidArgument,
                  source + ": device " + device_name(workers[unit]) + " has " +
                      units[seen->second].name + " and " + units[unit].name + ", but " +
                      units[seen->second + 1].name + " between them is on " +
                      device_name(workers[unit - 1]) +
                      "; here the modules of a device are one stage of a pipeline, which a token "
                      "passes once. A valid map near it: " +
                      describe(units, nearest_in_a_row(workers)));
    }
    last[workers[unit]] = unit;
  }
}

// "cpu" is every CPU worker that has nothing yet: each takes its share of the parameters.
void spread_over_cpus(const Topology& topology, const std::vector<Unit>& units,
                      std::vector<int>& workers) {
  std::vector<int> cpus = workers_named(topology, "cpu");
  std::erase_if(cpus, [&](int cpu) {
    return std::find(workers.begin(), workers.end(), cpu) != workers.end();
  });
  double total = 0;
  for (size_t unit = 0; unit < units.size(); ++unit) {
    if (workers[unit] == kAnyCpu) total += units[unit].parameters;
  }
  double so_far = 0;
  for (size_t unit = 0; unit < units.size(); ++unit) {
    if (workers[unit] != kAnyCpu) continue;
    if (cpus.empty()) {
      throw Error(Code::kInvalidArgument,
                  "cannot use the device map: " + units[unit].name +
                      " is on cpu, but no CPU worker is left for it; give worker numbers");
    }
    // By the middle of the unit, so that the shares are even.
    const double middle = (so_far + units[unit].parameters / 2) / std::max(total, 1.0);
    so_far += units[unit].parameters;
    workers[unit] = cpus[std::min(static_cast<size_t>(middle * static_cast<double>(cpus.size())),
                                  cpus.size() - 1)];
  }
}

Placement place(const std::string& source, const Topology& topology, const ModelSpec& model,
                const std::vector<Unit>& units, std::vector<int> workers,
                const PlacementOptions& options) {
  // A tied head has no weights of its own, and the norm is a vector: they go where they are needed.
  const int last_layer = workers[norm_of(units) - 1];
  if (model.tied_embeddings()) workers[norm_of(units)] = workers[head_of(units)] = last_layer;
  if (workers[norm_of(units)] == last_layer) {
    workers[norm_of(units)] = workers[head_of(units)];
  }
  spread_over_cpus(topology, units, workers);
  check_in_a_row(source, units, workers);
  if (workers[norm_of(units)] != workers[head_of(units)]) {
    throw Error(Code::kInvalidArgument,
                source + ": " + units[norm_of(units)].name + " is on device " +
                    device_name(workers[norm_of(units)]) + ", its place is with " +
                    units[head_of(units)].name + " on " + device_name(workers[head_of(units)]));
  }
  Placement placement;
  ReplicaSpec& replica = *placement.add_replicas();
  for (size_t begin = 0; begin < units.size();) {
    size_t end = begin;
    while (end < units.size() && workers[end] == workers[begin]) ++end;
    StageSpec& stage = *replica.add_stages();
    const auto layer = [&](size_t unit) {
      return std::clamp(static_cast<int32_t>(unit) - 1, 0, model.num_layers());
    };
    stage.mutable_layers()->set_begin(layer(begin));
    stage.mutable_layers()->set_end(layer(end));
    stage.set_has_embedding(begin == 0);
    stage.set_has_head(end == units.size());
    ShardSpec& shard = *stage.add_shards();
    shard = make_shard(model, 0, 1);
    shard.set_rank(topology.ranks(workers[begin]).rank());
    begin = end;
  }
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    if (std::find(workers.begin(), workers.end(), worker) != workers.end()) continue;
    placement.add_spare_ranks(topology.ranks(worker).rank());
  }
  check_memory_keys(topology, options);
  set_limits(model, options, placement);
  size_kv_cache(topology, model, options, placement);
  return placement;
}

// ---- an HF map ----

class HfMap {
 public:
  HfMap(const nlohmann::json& map, const std::string& path, const Topology& topology,
        const ModelSpec& model)
      : source_("cannot use the device map " + path), topology_(topology), model_(model) {
    units_ = list_units(model);
    list_names();
    for (const auto& [name, value] : map.items()) devices_[name] = device(name, value);
  }

  const std::string& source() const { return source_; }
  const std::vector<Unit>& units() const { return units_; }

  std::vector<int> workers() const {
    std::vector<int> workers;
    std::vector<std::string> missing;
    for (size_t index = 0; index < units_.size(); ++index) {
      const Unit& unit = units_[index];
      // Who needs no device of its own gets any.
      const bool free = index == head_of(units_) && model_.tied_embeddings();
      workers.push_back(
          of_unit(unit, free ? std::optional(workers.back()) : std::nullopt, missing));
    }
    if (missing.empty()) return workers;
    std::string names;
    for (size_t i = 0; i < std::min<size_t>(missing.size(), 3); ++i) {
      names += (i == 0 ? "" : ", ") + missing[i];
    }
    fail(
        "it gives no device to " + names +
        (missing.size() > 3 ? " and " + std::to_string(missing.size() - 3) + " more tensors" : ""));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(Code::kInvalidArgument, source_ + ": " + what);
  }

  void add_name(std::string name) {
    for (size_t dot = name.size(); dot != std::string::npos; dot = name.rfind('.')) {
      name.resize(dot);
      names_.insert(name);
    }
  }

  void list_names() {
    for (const Unit& unit : units_) {
      for (const std::string& tensor : unit.tensors) add_name(tensor);
    }
    add_name(model_.rotary().name());
    if (model_.prefix_length() > 0) add_name(model_.modules(1).name());
  }

  bool known(const std::string& name) const {
    const bool in_prefix =
        model_.prefix_length() > 0 && name.starts_with(model_.modules(1).name() + ".");
    return name.empty() || in_prefix || names_.contains(name);
  }

  static std::string quoted(const std::string& name) { return "\"" + name + "\""; }

  // Of names of other models the one with the same part; else the nearest by its letters.
  std::string nearest(const std::string& name) const {
    const auto says = [&](const char* part) { return name.find(part) != std::string::npos; };
    const size_t digit = name.find_first_of("0123456789");
    if (digit != std::string::npos && digit > 0 && name[digit - 1] == '.') {
      const size_t layer = std::strtoul(name.c_str() + digit, nullptr, 10) + 1;
      if (layer < norm_of(units_)) return quoted(units_[layer].name);
      return quoted(units_[norm_of(units_) - 1].name) + ", its last layer";
    }
    if (says("head") || says("output_layer")) return quoted(units_[head_of(units_)].name);
    if (says("emb") && !says("rotary")) return quoted(units_.front().name);
    return quoted(nearest_name(name, {names_.begin(), names_.end()}));
  }

  int device(const std::string& name, const nlohmann::json& value) const {
    if (!known(name)) {
      fail("\"" + name.substr(0, 200) + "\" is no module of " + model_.name() +
           "; the nearest is " + nearest(name));
    }
    std::string text;
    if (value.is_number_integer()) text = value.dump();
    if (value.is_string()) text = value.get<std::string>();
    if (text == "disk" || text == "meta") {
      fail("\"" + name + "\" is on " + text +
           ", but nothing is offloaded here; every module needs a "
           "worker: " +
           known_worker_names(topology_));
    }
    const std::vector<int> workers = workers_named(topology_, text);
    if (workers.empty()) {
      fail("\"" + name + "\" is on " +
           (text.empty() ? value.type_name() : "\"" + text.substr(0, 80) + "\"") +
           ", which no worker is called; the job has " + known_worker_names(topology_));
    }
    return workers.size() > 1 ? kAnyCpu : workers.front();
  }

  const std::pair<const std::string, int>* rule_of(std::string name) const {
    for (auto rule = devices_.find(name);; rule = devices_.find(name)) {
      if (rule != devices_.end()) return &*rule;
      if (name.empty()) return nullptr;
      const size_t dot = name.rfind('.');
      name.resize(dot == std::string::npos ? 0 : dot);
    }
  }

  int of_unit(const Unit& unit, std::optional<int> otherwise,
              std::vector<std::string>& missing) const {
    const std::pair<const std::string, int>* first = nullptr;
    for (const std::string& tensor : unit.tensors) {
      const auto* const rule = rule_of(tensor);
      if (rule == nullptr) {
        if (!otherwise) missing.push_back(tensor);
        continue;
      }
      if (first != nullptr && first->second != rule->second) {
        fail("\"" + rule->first + "\" is on " + device_name(rule->second) + " and \"" +
             first->first + "\" on " + device_name(first->second) + ", but " + unit.name +
             " is computed by one stage; give it one device, or split every layer by --tp");
      }
      first = rule;
    }
    return first != nullptr ? first->second : otherwise.value_or(0);
  }

  const std::string source_;
  const Topology& topology_;
  const ModelSpec& model_;
  std::vector<Unit> units_;
  std::set<std::string> names_;
  std::map<std::string, int> devices_;
};

}  // namespace

Placement place_by_hf_map(const nlohmann::json& map, const std::string& path,
                          const Topology& topology, const ModelSpec& model,
                          const PlacementOptions& options) {
  const HfMap read(map, path, topology, model);
  return place(read.source(), topology, model, read.units(), read.workers(), options);
}

Placement place_by_accelerate(AccelerateStrategy strategy, const Topology& topology,
                              const ModelSpec& model, const PlacementOptions& options) {
  std::vector<int> order;
  std::vector<AccelerateDevice> devices;
  bool given = false;
  const size_t num_cpus = workers_named(topology, "cpu").size();
  const bool has_gpu = num_cpus < static_cast<size_t>(topology.ranks_size());
  for (const bool offload : {false, true}) {
    for (int worker = 0; worker < topology.ranks_size(); ++worker) {
      const RankInfo& rank = topology.ranks(worker);
      const bool cpu = rank.device().kind() == DEVICE_KIND_CPU;
      if ((has_gpu && cpu) != offload) continue;
      const uint64_t bytes = memory_of(topology, worker, options);
      given = given || bytes < rank.device().memory_bytes();
      order.push_back(worker);
      devices.push_back({static_cast<double>(bytes), offload});
    }
  }
  devices = accelerate_budgets(model, options.dtype, strategy, devices, given);
  const std::vector<int> map = accelerate_map(model, options.dtype, devices);
  const std::vector<Unit> units = list_units(model);
  std::vector<int> workers;
  for (size_t index = 0; index + 1 < map.size(); ++index) {
    if (index == 1 && model.prefix_length() > 0) continue;
    if (map[index] == kAccelerateDisk) {
      throw Error(Code::kResourceExhausted,
                  "cannot place " + model.name() + ": accelerate would put " +
                      units[workers.size()].name +
                      " on disk, and nothing is offloaded here; use --device_map auto, add ranks, "
                      "or raise --max_memory");
    }
    workers.push_back(order[static_cast<size_t>(map[index])]);
  }
  return place("cannot use accelerate's device map", topology, model, units, workers, options);
}

}  // namespace trireme
