/**
 * How runners reach each other: plain sockets, HTTP, or WebSockets over it. What travels are commands, never jobs. Loaded only by runners.
 *
 * Messages are JSON lines: the binary form refuses peers with another version of a message, and a rolling deploy has two.
 */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import * as HttpRunner from "effect/cluster/HttpRunner"
import type { MessageStorage } from "effect/cluster/MessageStorage"
import type { RunnerHealth } from "effect/cluster/RunnerHealth"
import type { RpcClientProtocol } from "effect/cluster/Runners"
import type { RunnerStorage } from "effect/cluster/RunnerStorage"
import type { Sharding } from "effect/cluster/Sharding"
import type { ShardingConfig } from "effect/cluster/ShardingConfig"
import * as SocketRunner from "effect/cluster/SocketRunner"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import type * as NetAddress from "effect/net/NetAddress"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import * as SocketServer from "effect/socket/SocketServer"
import { createServer } from "node:http"
import { ClusterError } from "./clusterError.ts"
import type { Settings, Transport as Name } from "./runnerSettings.ts"

type Listen = Settings["listen"]

/** One way to reach each other. */
export interface Transport<Server> {
  /** Listens. */
  readonly server: (listen: Listen) => Layer.Layer<Server, ClusterError>
  /** The port it listens at. */
  readonly boundPort: Effect.Effect<number, never, Server>
  /** The way to others. */
  readonly client: Layer.Layer<RpcClientProtocol>
  /** Answers others, and takes part in the cluster. */
  readonly runner: Layer.Layer<
    Sharding,
    never,
    Server | RpcClientProtocol | ShardingConfig | MessageStorage | RunnerStorage | RunnerHealth
  >
}

const portOf = (address: NetAddress.SocketAddress): number => address._tag === "UnixPathAddress" ? 0 : address.port

const codeOf = (cause: unknown): string =>
  typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : ""

const cannotListen = ({ host, port }: Listen) => (error: { readonly cause?: unknown }): ClusterError => {
  const code = codeOf(error.cause)
  const at = `JobRuntime.layerCluster cannot listen at ${host}:${port}`
  return code === "EADDRINUSE"
    ? new ClusterError({
      reason: "AddressTaken",
      message: `${at}: another process does. Give each runner of a machine a port of its own (MILLRACE_RUNNER_PORT), ` +
        "or 0 for any free one",
      cause: error
    })
    : new ClusterError({
      reason: "AddressUnavailable",
      message: `${at} (${code === "" ? String(error.cause) : code}). Where this machine does not have that address ` +
        "itself, name one that it has (MILLRACE_RUNNER_LISTEN_HOST, 0.0.0.0 for all of them)",
      cause: error
    })
}

const serialized = Layer.provide(RpcSerialization.layerNdjson)

const socket: Transport<SocketServer.SocketServer> = {
  server: (listen) =>
    Layer.effect(
      SocketServer.SocketServer,
      Effect.mapError(NodeSocketServer.make({ ...listen }), cannotListen(listen))
    ),
  boundPort: Effect.map(SocketServer.SocketServer, ({ address }) => portOf(address)),
  client: serialized(NodeClusterSocket.layerClientProtocol),
  runner: serialized(SocketRunner.layer)
}

/** By the time it closes nothing runs here any more, and the others' connections stay open for ever. */
const gracefulShutdownTimeout = "200 millis"

const httpServer = (listen: Listen) =>
  Layer.effect(
    HttpServer.HttpServer,
    Effect.mapError(
      NodeHttpServer.make(createServer, { ...listen, gracefulShutdownTimeout }),
      cannotListen(listen)
    )
  )

const httpPort = Effect.map(HttpServer.HttpServer, ({ address }) => portOf(address))

const quiet = { disableLogger: true } as const

const http: Transport<HttpServer.HttpServer> = {
  server: httpServer,
  boundPort: httpPort,
  client: serialized(HttpRunner.layerClientProtocolHttpDefault).pipe(Layer.provide(NodeHttpClient.layerUndici)),
  runner: serialized(HttpRouter.serve(HttpRunner.layerHttpOptions({ path: "/" }), quiet))
}

const websocket: Transport<HttpServer.HttpServer> = {
  server: httpServer,
  boundPort: httpPort,
  client: serialized(HttpRunner.layerClientProtocolWebsocketDefault).pipe(
    Layer.provide(NodeSocket.layerWebSocketConstructor)
  ),
  runner: serialized(HttpRouter.serve(HttpRunner.layerWebsocketOptions({ path: "/" }), quiet))
}

/** By its name in the settings. */
export const byName = { socket, http, websocket } satisfies { readonly [_ in Name]: unknown }
