// SPDX-License-Identifier: Apache-2.0
#include "coordinator/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "coordinator/auth.h"
#include "kernels/base/error.h"
#include "tests/coordinator/service_harness.h"

namespace trireme {
namespace {

using grpc::StatusCode;

constexpr const char* kToken = "0123456789abcdef0123456789abcdef";

// A call as a client makes it that has no stubs: bytes out, the first message back.
grpc::Status raw_call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& request, std::string& reply) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  wait();
  const grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
  wait();
  grpc::ByteBuffer buffer;
  call->Read(&buffer, nullptr);
  if (wait()) {
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(buffer.Dump(&slices).ok());
    for (const grpc::Slice& part : slices)
      reply.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  return status;
}

// 1: SERVING, 2: NOT_SERVING, 0: no such service.
int health_of(Harness& harness, const std::string& service) {
  std::string request;
  if (!service.empty()) request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  std::string reply;
  const grpc::Status status =
      raw_call(harness.channel_, "/grpc.health.v1.Health/Check", request, reply);
  if (!status.ok()) return 0;
  return reply.size() == 2 ? reply[1] : -1;  // field 1, a varint
}

grpc::Status generate_with(Harness& harness, const std::vector<std::string>& authorization) {
  grpc::ClientContext context;
  for (const std::string& value : authorization) context.AddMetadata("authorization", value);
  return read_all(*harness.stub_->Generate(&context, ids_request({1}, 2))).status;
}

grpc::Status drain_with(Harness& harness, const std::string& authorization) {
  grpc::ClientContext context;
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  v1::DrainReply reply;
  return harness.cluster_->Drain(&context, {}, &reply);
}

void expect_refused(const HarnessOptions& options, Code code, const std::string& word) {
  try {
    Harness harness(options);
    ADD_FAILURE() << "was bound: " << options.listen;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/trireme_server_test_XXXXXX";
    path_ = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

mode_t mode_of(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 ? status.st_mode & 0777 : 0;
}

TEST(Server, HealthFollowsTheEngine) {
  HarnessOptions options;
  options.serve = false;
  Harness harness(options);
  for (const char* name : {"", "trireme.v1.Inference", "trireme.v1.Cluster"}) {
    EXPECT_EQ(health_of(harness, name), 2) << name;
  }
  EXPECT_EQ(health_of(harness, "nobody"), 0);
  harness.start_serving();
  for (const char* name : {"", "trireme.v1.Inference", "trireme.v1.Cluster"}) {
    EXPECT_EQ(health_of(harness, name), 1) << name;
  }
  harness.workers_.report(1, ChannelEvent::Kind::kClosed);
  EXPECT_TRUE(Harness::eventually([&] { return health_of(harness, "") == 2; }));
}

TEST(Server, DrainIsNotServing) {
  Harness harness;
  EXPECT_EQ(health_of(harness, ""), 1);
  harness.service_.drain("the server drains");
  EXPECT_EQ(health_of(harness, ""), 2);
}

TEST(Server, ReflectionListsTheServices) {
  Harness harness;
  std::string reply;
  // ServerReflectionRequest.list_services, field 7, an empty string.
  raw_call(harness.channel_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
           std::string("\x3a\x00", 2), reply);
  for (const char* name : {"trireme.v1.Inference", "trireme.v1.Cluster", "grpc.health.v1.Health"}) {
    EXPECT_NE(reply.find(name), std::string::npos) << name;
  }
}

TEST(Server, MessagesAreBounded) {
  Harness harness;
  // GenerateRequest.text, field 2, of 5 MiB.
  const std::string text(5 << 20, 'a');
  std::string reply;
  const grpc::Status status = raw_call(harness.channel_, "/trireme.v1.Inference/Generate",
                                       std::string("\x12\x80\x80\xc0\x02", 5) + text, reply);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_NE(status.error_message().find(std::to_string(kMaxMessageBytes)), std::string::npos)
      << status.error_message();
  EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 2)).status.ok());
}

TEST(Server, HostileBytesHarmNobody) {
  Harness harness;
  for (const std::string& bytes : {std::string("\x12\x01\xff"), std::string("\xff\xff\xff"),
                                   std::string("\x12\x7f"
                                               "a"),
                                   std::string("\xf8\x06\x01\x12\x01"
                                               "a")}) {
    std::string reply;
    EXPECT_FALSE(raw_call(harness.channel_, "/trireme.v1.Inference/Generate", bytes, reply).ok());
  }
  std::string reply;
  EXPECT_EQ(raw_call(harness.channel_, "/trireme.v1.Inference/Nothing", "", reply).error_code(),
            StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 2)).status.ok());
}

TEST(Server, AsksForTheToken) {
  HarnessOptions options;
  options.token = kToken;
  Harness harness(options);
  const std::string good = std::string("Bearer ") + kToken;
  EXPECT_EQ(generate_with(harness, {}).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(generate_with(harness, {"Bearer 0123"}).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(generate_with(harness, {kToken}).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(generate_with(harness, {good + "0"}).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(generate_with(harness, {good, good}).error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(generate_with(harness, {good}).ok());
  v1::Load load;
  grpc::ClientContext context;
  EXPECT_EQ(harness.cluster_->GetLoad(&context, {}, &load).error_code(),
            StatusCode::UNAUTHENTICATED);
  v1::AbortReply aborted;
  v1::AbortRequest abort;
  abort.set_request_id("x");
  grpc::ClientContext abort_context;
  EXPECT_EQ(harness.stub_->Abort(&abort_context, abort, &aborted).error_code(),
            StatusCode::UNAUTHENTICATED);
  grpc::ClientContext watch_context;
  const auto watch = harness.cluster_->WatchHealth(&watch_context, {});
  v1::ClusterHealth health;
  EXPECT_FALSE(watch->Read(&health));
  EXPECT_EQ(watch->Finish().error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(health_of(harness, ""), 1);  // health asks for none
}

TEST(Server, DrainTakesTheToken) {
  Harness open;
  const grpc::Status refused = drain_with(open, "");
  EXPECT_EQ(refused.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_NE(refused.error_message().find("--token_file"), std::string::npos);
  EXPECT_FALSE(open.drained);

  HarnessOptions options;
  options.token = kToken;
  Harness closed(options);
  EXPECT_EQ(drain_with(closed, "").error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(drain_with(closed, "Bearer wrong").error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_FALSE(closed.drained);
  EXPECT_TRUE(drain_with(closed, std::string("Bearer ") + kToken).ok());
  EXPECT_TRUE(closed.drained);
}

TEST(Server, APortInUseIsSaid) {
  const Harness harness;
  HarnessOptions options;
  options.listen = harness.server_->address();
  expect_refused(options, Code::kFailedPrecondition, options.listen);
  expect_refused(options, Code::kFailedPrecondition, "Address already in use");
}

TEST(Server, AddressFileIsPrivateAndGoesAway) {
  const Folder folder;
  HarnessOptions options;
  options.server.address_file = folder / "address";
  std::ofstream(options.server.address_file) << "stale";
  {
    const Harness harness(options);
    EXPECT_FALSE(std::filesystem::exists(options.server.address_file));
    harness.server_->publish_address();
    std::string line;
    std::getline(std::ifstream(options.server.address_file) >> std::ws, line);
    EXPECT_EQ(line, harness.server_->address());
    EXPECT_EQ(mode_of(options.server.address_file), 0600u);
  }
  EXPECT_FALSE(std::filesystem::exists(options.server.address_file));
  // Known before a model is loaded.
  options.server.address_file = folder / "no/such/folder";
  EXPECT_THROW(const Harness harness(options), Error);
  options.server.address_file = folder / "address";
  const Harness harness(options);
  std::filesystem::remove_all(folder / "");
  EXPECT_THROW(harness.server_->publish_address(), Error);
}

TEST(Server, UnixSocketIsPrivate) {
  const Folder folder;
  HarnessOptions options;
  options.listen = "unix:" + (folder / "socket");
  {
    const Harness harness(options);
    EXPECT_EQ(mode_of(folder / "socket"), 0600u);
    EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 2)).status.ok());
    expect_refused(options, Code::kFailedPrecondition, "another server");
  }
  // One that is left from a server that was killed.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  (folder / "socket").copy(address.sun_path, sizeof address.sun_path - 1);
  unlink(address.sun_path);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  close(fd);
  {
    const Harness harness(options);
    EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 2)).status.ok());
  }
  std::ofstream(folder / "file") << "precious";
  options.listen = "unix:" + (folder / "file");
  expect_refused(options, Code::kFailedPrecondition, "no socket");
  EXPECT_TRUE(std::filesystem::exists(folder / "file"));
}

TEST(Server, StrangersNeedProof) {
  HarnessOptions options;
  options.listen = "0.0.0.0:0";
  expect_refused(options, Code::kInvalidArgument, "--allow_insecure");
  options.token = kToken;
  expect_refused(options, Code::kInvalidArgument, "--tls_cert");
  options.server.tls_client_ca = "ca.pem";
  options.listen = "127.0.0.1:0";
  expect_refused(options, Code::kInvalidArgument, "--tls_client_ca");
  options.server.tls_client_ca.clear();
  options.server.tls_cert = "c.pem";
  expect_refused(options, Code::kInvalidArgument, "--tls_key");
  options.server.tls_key = "/nonexistent/k.pem";
  expect_refused(options, Code::kNotFound, "k.pem");
}

TEST(Server, Tls) {
  const Folder folder;
  const std::string key = folder / "key.pem", cert = folder / "cert.pem";
  const std::string make =
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
      "-nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
      " -keyout " +
      key + " -out " + cert + " 2>/dev/null";
  if (std::system(make.c_str()) != 0) GTEST_SKIP() << "the openssl program is not installed";
  HarnessOptions options;
  options.server.tls_cert = cert;
  options.server.tls_key = key;
  const Harness harness(options);
  EXPECT_FALSE(generate(*harness.stub_, ids_request({1}, 2)).status.ok());  // speaks no TLS

  grpc::SslCredentialsOptions ssl;
  std::ifstream file(cert);
  ssl.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  const std::string& address = harness.server_->address();
  const auto channel = grpc::CreateChannel("localhost" + address.substr(address.rfind(':')),
                                           grpc::SslCredentials(ssl));
  const auto stub = v1::Inference::NewStub(channel);
  const Seen seen = generate(*stub, ids_request({1}, 2));
  EXPECT_TRUE(seen.status.ok()) << seen.status.error_message();

  std::ofstream(folder / "junk.pem") << "junk";
  options.server.tls_cert = folder / "junk.pem";
  expect_refused(options, Code::kFailedPrecondition, "");
}

TEST(Auth, ListenAddresses) {
  EXPECT_EQ(parse_listen("127.0.0.1:50051").to_string(), "127.0.0.1:50051");
  EXPECT_EQ(parse_listen("[::1]:0").host, "::1");
  EXPECT_EQ(parse_listen("[::1]:0").to_string(), "[::1]:0");
  EXPECT_EQ(parse_listen("unix:rel/path").path, "rel/path");
  for (const char* bad :
       {"", "localhost", ":1", "h:", "h:x", "h:65536", "h:-1", "::1:5", "unix:", "h:1x", "h: 1"}) {
    EXPECT_THROW(parse_listen(bad), Error) << bad;
  }
  EXPECT_THROW(parse_listen("unix:" + std::string(108, 'x')), Error);
  for (const char* local : {"localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/s"}) {
    EXPECT_TRUE(is_local(parse_listen(local))) << local;
  }
  for (const char* remote : {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "node7:1", "128.0.0.1:1"}) {
    EXPECT_FALSE(is_local(parse_listen(remote))) << remote;
  }
}

TEST(Auth, Exposure) {
  const ListenAddress remote = parse_listen("10.0.0.1:1");
  const ListenAddress local = parse_listen("127.0.0.1:1");
  EXPECT_NO_THROW(check_exposure(local, {}));
  EXPECT_NO_THROW(check_exposure(remote, {.allow_insecure = true}));
  EXPECT_NO_THROW(check_exposure(remote, {.token = true, .tls = true}));
  EXPECT_NO_THROW(check_exposure(remote, {.tls = true, .client_ca = true}));
  EXPECT_THROW(check_exposure(remote, {}), Error);
  EXPECT_THROW(check_exposure(remote, {.token = true}), Error);
  EXPECT_THROW(check_exposure(remote, {.tls = true}), Error);
}

TEST(Auth, TokenFile) {
  const Folder folder;
  const std::string path = folder / "token";
  const auto write = [&](const std::string& text, mode_t mode) {
    std::ofstream(path) << text;
    chmod(path.c_str(), mode);
  };
  EXPECT_THROW(read_token_file(path), Error);
  write(std::string("  ") + kToken + "\r\n", 0600);
  EXPECT_EQ(read_token_file(path), kToken);
  for (const mode_t mode : {0604, 0640, 0622, 0644}) {
    write(kToken, mode);
    EXPECT_THROW(read_token_file(path), Error) << std::oct << mode;
  }
  for (const std::string& bad : {std::string(), std::string("short"), std::string(5000, 'x'),
                                 std::string("two words of a token")}) {
    write(bad, 0600);
    EXPECT_THROW(read_token_file(path), Error) << bad;
  }
}

TEST(Auth, Bearer) {
  EXPECT_TRUE(bearer_matches("Bearer abc", "abc"));
  EXPECT_TRUE(bearer_matches("bearer abc", "abc"));
  for (const char* bad :
       {"", "Bearer", "Bearer ", "abc", "Basic abc", "Bearer ab", "Bearer abcd", "Bearer  abc"}) {
    EXPECT_FALSE(bearer_matches(bad, "abc")) << bad;
  }
}

}  // namespace
}  // namespace trireme
