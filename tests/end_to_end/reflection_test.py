# SPDX-License-Identifier: Apache-2.0
"""A client that has no stub and no proto file: all it knows it asks the server by reflection."""
import unittest

import harness
from harness import Server, grpc

# After harness, which chooses the Python that has them.
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

server = None


def setUpModule():
    global server
    server = Server(harness.tiny_model(), "--pp", "2", ranks=3)


def tearDownModule():
    server.close()


class Reflected:
    """Calls of a server by names alone."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def method(self, service, name):
        return self.pool.FindServiceByName(service).FindMethodByName(name)

    def call(self, service, name, fill):
        method = self.method(service, name)
        request = message_factory.GetMessageClass(method.input_type)()
        fill(request)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        return make(f"/{service}/{name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
                    )(request, timeout=30)


class Reflection(unittest.TestCase):
    def setUp(self):
        self.channel = grpc.insecure_channel(server.address)
        self.client = Reflected(self.channel)

    def tearDown(self):
        self.channel.close()

    def test_lists_the_services(self):
        self.assertLessEqual({"trireme.v1.Inference", "trireme.v1.Cluster", "grpc.health.v1.Health"},
                             set(self.client.database.get_services()))

    def test_streams_an_answer(self):
        def fill(request):
            request.token_ids.ids.extend([1, 2, 3])
            request.sampling.temperature = 0
            request.max_tokens = 9
            request.ignore_eos = True
        events = list(self.client.call("trireme.v1.Inference", "Generate", fill))
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds, ["delta"] * (len(kinds) - 1) + ["finished"])
        ids = [token for event in events[:-1] for token in event.delta.token_ids]
        self.assertEqual(len(ids), 9)
        finished = events[-1].finished
        self.assertEqual((finished.usage.prompt_tokens, finished.usage.completion_tokens), (3, 9))
        reason = finished.DESCRIPTOR.fields_by_name["finish_reason"].enum_type
        self.assertEqual(reason.values_by_number[finished.finish_reason].name, "FINISH_REASON_LENGTH")

    def test_reads_the_cluster(self):
        placement = self.client.call("trireme.v1.Cluster", "GetPlacement", lambda request: None)
        stages = placement.replicas[0].stages
        self.assertEqual(sorted(shard.rank for stage in stages for shard in stage.shards), [1, 2])
        self.assertEqual(stages[0].layers.begin, 0)
        self.assertEqual(stages[0].layers.end, stages[1].layers.begin)
        topology = self.client.call("trireme.v1.Cluster", "GetTopology", lambda request: None)
        pids = {rank.rank: rank.pid for rank in topology.ranks}
        started = server.ranks()
        self.assertEqual(pids, {1: started[1], 2: started[2]})

    def test_watches_health(self):
        watch = self.client.call("trireme.v1.Cluster", "WatchHealth", lambda request: None)
        first = next(watch)
        self.assertTrue(first.serving)
        self.assertEqual([(rank.rank, rank.state) for rank in first.ranks], [(1, "serving"), (2, "serving")])
        watch.cancel()

    def test_a_drain_needs_the_admin_token(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.client.call("trireme.v1.Cluster", "Drain", lambda request: None)
        self.assertEqual(caught.exception.code().name, "PERMISSION_DENIED")


class Health(unittest.TestCase):
    def test_says_serving(self):
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "trireme.v1.Inference", "trireme.v1.Cluster"):
                reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING, service)
            with self.assertRaises(grpc.RpcError) as caught:
                stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
            self.assertEqual(caught.exception.code().name, "NOT_FOUND")


if __name__ == "__main__":
    harness.main(limit_s=60)
