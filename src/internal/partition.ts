/**
 * The owner of one partition: takes over, makes sure that it still owns it, stops when the lock is lost, hands over.
 *
 * Promise: what runs here ends with the ownership, and nothing is left to undo. After a crash the next owner takes over by epoch. What the
 * owner does meanwhile is in reading, dispatch, timers and notes, on the memory that is in partitionState.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { EventBus } from "../EventBus.ts"
import type * as Execution from "../Execution.ts"
import type { JobHandlers } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, Owner, Ready, Rerun } from "../JobStore.ts"
import type * as Mailbox from "../Mailbox.ts"
import type * as RequestContext from "../RequestContext.ts"
import * as Announcer from "./announcer.ts"
import * as Attempts from "./attempts.ts"
import * as Canceller from "./canceller.ts"
import * as Cancels from "./cancels.ts"
import * as Crashes from "./crashes.ts"
import * as Dispatch from "./dispatch.ts"
import * as Grace from "./grace.ts"
import * as HandlerChanges from "./handlerChanges.ts"
import * as Listener from "./listener.ts"
import type { Member, Moves } from "./moves.ts"
import * as Notes from "./notes.ts"
import { Outage } from "./outage.ts"
import * as PartitionState from "./partitionState.ts"
import * as Reading from "./reading.ts"
import type { RunWatch } from "./runWatch.ts"
import * as Settler from "./settler.ts"
import { unanswered } from "./sql/unanswered.ts"
import type { Lock } from "./supervisor.ts"
import type { Suspects } from "./suspects.ts"
import { atMost, monotonicMillis, onLiveClock } from "./time/liveClock.ts"
import * as Timers from "./timers.ts"
import { told } from "./told.ts"
import * as Unstarted from "./unstarted.ts"
import { untilAvailable } from "./untilAvailable.ts"
import type { Unwritten } from "./unwritten.ts"
import { inspectable, inspectableCause } from "./words/safely.ts"

/** What a partition is made of. */
export interface Options {
  readonly store: JobStore["Service"]
  readonly handlers: JobHandlers["Service"]
  readonly bus: EventBus["Service"]
  readonly queue: JobQueue
  readonly queueId: number
  readonly partition: number
  readonly position: RequestContext.ClusterPosition
  /** This process, as long as it lives: who takes the partition over. */
  readonly incarnation: string
  /** Services for attempts and timers, among them the runtime's Clock. */
  readonly services: Context.Context<never>
  /** How long running attempts may go on at shutdown. */
  readonly graceMs: number
  /** How long a handler may take to end once it is interrupted, before it is abandoned. */
  readonly abandonAfterMs: number
  /** How long a job waits for a handler of its type. */
  readonly handlerGraceMs: number
  /** Says whether this process can be sure that it owns the partition. */
  readonly lock: Lock
  /** Those of all partitions of this process. */
  readonly suspects: Suspects
  /** What former ownerships of this process could not write. */
  readonly unwritten: Unwritten
  /** Tells of its coming and going. */
  readonly moves: Moves
  /** Which handlers of the process do not end. */
  readonly runWatch: RunWatch
  /** What all partitions of the process use of the grace period when it leaves. Default: its own. */
  readonly together?: Grace.Together
}

/** A job as its owner sees it. */
export interface View {
  readonly isRunning: boolean
  readonly startedAt: number | undefined
  readonly progress: number | undefined
  readonly message: string | undefined
}

/** The commands of a partition. */
export interface Partition {
  /** Rows have become ready, or will be due. */
  readonly wake: (ready: ReadonlyArray<Ready>) => Effect.Effect<void>
  /** The same for submitters of this process: what they bring along is not read again. */
  readonly tell: (ready: ReadonlyArray<Ready>) => void
  readonly cancel: Canceller.Cancel
  readonly view: (id: JobId) => View | undefined
  /** What is held in memory: waiting by lane and tenant, and running. */
  readonly snapshot: () => { readonly lanes: ReadonlyArray<Mailbox.LaneDepth>; readonly running: ReadonlyArray<JobId> }
}

/** How often an owner makes sure that it is one. */
const checkSeconds = 5

/** Owns the partition until the scope closes. Returns at once; the take-over is tried until the store answers. */
export const make = (options: Options): Effect.Effect<Partition, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { bus, handlers, lock, moves, partition, position, queue, queueId, services, store, suspects, unwritten } =
      options
    const loops = yield* Scope.make()
    const attemptsScope = yield* Scope.make()
    const state = yield* PartitionState.make(queue)
    const { dispatchDue, held, mailbox, release, timerDue } = state
    const { abandonAfterMs, graceMs, runWatch } = options
    const own = Grace.together()
    const { together = own } = options
    /** At a shutdown one grace period is that of all handlers and partitions, whichever goes first. */
    const graceOf = (shared: () => Grace.Together) =>
      Grace.make({ graceMs, abandonAfterMs, lockLost: lock.lost, together: shared })
    const end = graceOf(() => moves.isLeaving() ? together : own)
    const announcer = Announcer.make(bus, queue.name, services)
    const outageHere = Context.get(services, Outage)
    const outage = yield* outageHere.within(loops, position.entity)
    const intakeLock = yield* Semaphore.make(1)
    const blocked = new Set<JobId>()
    /** Jobs whose outcome of a former ownership is being written. */
    const unsettled = new Set<JobId>()
    const isBlocked = (id: JobId) => blocked.has(id) || unsettled.has(id)
    const cancels = Cancels.make()
    let isStopped = false

    const settle = Unstarted.make({ state, store, announcer, cancels })
    const reading = Reading.make({ state, store, queue, isBlocked, intakeLock, outage })
    const timers = Timers.make({ state, store, queue, queueId, partition, outage })

    /** A defect of ours must not stop a queue: it is logged, and the next turn goes on. */
    const forEver = <A>(turn: Effect.Effect<A>) =>
      turn.pipe(
        Effect.catchDefect((defect) =>
          Effect.andThen(
            told(Effect.logError("A turn of the queue's owner died", inspectable(defect))),
            onLiveClock(Effect.sleep("1 second"))
          )
        ),
        Effect.forever
      )

    /** Somebody else may own the partition from now on: nothing more starts here, and what runs cannot commit. It ends at once. */
    const stopWhenLost = Effect.gen(function*() {
      yield* lock.lost
      if (state.owned === undefined) return
      const { attempts, suspects: ownSuspects } = state.owned
      ownSuspects.withdraw(() => true)
      const count = attempts.size()
      if (count === 0) return
      yield* told(Effect.logWarning(
        `The lock of ${position.entity} is lost: ${
          count === 1
            ? "1 job under way ends here, and runs again where it is owned next if its outcome is not stored"
            : `${count} jobs under way end here, and those whose outcome is not stored run again where it is owned next`
        }`
      ))
      const abandonAt = monotonicMillis() + abandonAfterMs
      yield* attempts.stop(() => true, { abandonAt, endBy: abandonAt + abandonAfterMs })
    })

    /**
     * Somebody's late take-over may have ended this ownership, though the lock is here: a process that was frozen between its look at the
     * lock and the statement. Nothing could run here any more, so the partition is taken over again.
     */
    const checkTurn = (owner: Owner) =>
      Effect.gen(function*() {
        yield* onLiveClock(Effect.sleep(Duration.seconds(checkSeconds)))
        if (yield* Effect.orElseSucceed(store.isOwner(owner), () => true)) return
        // Lost here, it is theirs by right, and this ownership ends in a moment.
        if (!lock.isHeld()) return yield* Effect.never
        yield* Effect.logWarning(
          `${position.entity} was taken over by another process that had lost its lock: taking over again`
        )
        lock.giveUp()
        return yield* Effect.never
      })

    const owning = Effect.gen(function*() {
      const left = unwritten.of({ queueId, partition })
      const taking = (reruns: ReadonlyArray<Rerun>) =>
        Effect.flatMap(
          store.now,
          (now) =>
            // Too late, a take-over would end the ownership of whoever has the lock by now.
            lock.isHeld()
              ? store.takeOver({ queueId, partition }, {
                owner: `${position.runner}#${options.incarnation}`,
                now,
                unwritten: reruns,
                ...(lock.number === undefined ? {} : { lock: lock.number })
              })
              : Effect.never
        )
      // An entry that the database does not take must not keep the partition without an owner.
      const reruns = left.filter((settlement) => settlement._tag === "Rerun")
      const takeOver = reruns.length === 0 ? taking([]) : taking(reruns).pipe(
        Effect.catchIf(({ reason }) => reason === "Refused", () => taking([])),
        Effect.catchDefect(() => taking([]))
      )
      const { former, isCareful, owner } = yield* untilAvailable(takeOver, "Taking over", outage)
      if (isCareful) {
        yield* Crashes.count({
          store,
          owner,
          former,
          blocked,
          running: () => state.owned?.attempts.ids() ?? [],
          onUnblocked: (id) => {
            const job = held.get(id)
            if (job !== undefined) release(job, true)
          },
          onCounted: announcer.crashed,
          scope: loops,
          outage
        })
      }
      const environment: Execution.Environment = { store, owner, queue, position, services }
      const settler = yield* Settler.make({
        store,
        owner,
        isStopped: () => isStopped,
        outage: yield* outageHere.within(attemptsScope, position.entity)
      }).pipe(Scope.provide(attemptsScope))
      const attempts = yield* Attempts.make({
        environment,
        settler,
        announcer,
        cancels,
        release,
        onDue: () => void timerDue.openUnsafe(),
        onEnded: () => {
          dispatchDue.openUnsafe()
          if (suspects.isActive) suspects.ended()
        },
        isStopped: () => isStopped,
        isOwned: lock.isHeld,
        unwritten,
        abandonAfterMs,
        runWatch,
        hold: state.keys.hold
      }).pipe(Scope.provide(attemptsScope))
      const leaveWatch = runWatch.join({ queue: queue.name, concurrency: queue.concurrency, runs: attempts.runs })
      yield* Effect.addFinalizer(() => Effect.sync(leaveWatch)).pipe(Scope.provide(attemptsScope))
      const ownSuspects = suspects.join({
        attempts,
        hasWaiting: () => mailbox.size > 0,
        wake: () => void dispatchDue.openUnsafe()
      })
      state.owned = { owner, attempts, settler, suspects: ownSuspects }
      // What the take-over has counted comes back as superseded. A row may be locked by a session that is still ending: nothing waits for it
      // but its own job, which must not start before that.
      for (const { id } of left) unsettled.add(id)
      unwritten.forget(left)
      yield* Effect.forEach(left, (settlement) =>
        Effect.ensuring(
          Effect.catchCause(
            settler.settle(settlement),
            (cause) => told(Effect.logError("An outcome of a former ownership is lost", inspectableCause(cause)))
          ),
          Effect.sync(() => {
            unsettled.delete(settlement.id)
            const job = held.get(settlement.id)
            if (job !== undefined) release(job, true)
          })
        ), { concurrency: "unbounded", discard: true }).pipe(
          // What was passed over meanwhile is read again.
          Effect.andThen(Effect.sync(() => {
            held.sweep()
            state.keys.sweep()
            state.intakeDue.openUnsafe()
          })),
          Effect.when(Effect.succeed(left.length > 0)),
          Effect.forkIn(loops)
        )
      const changes = HandlerChanges.make({ state, end: graceOf(() => together), entity: position.entity, loops })
      yield* handlers.observe(changes).pipe(Scope.provide(loops))
      const dispatchTurn = Dispatch.make({
        state,
        attempts,
        cancels,
        suspects,
        ownSuspects,
        store,
        handlers,
        lock,
        queue,
        partition,
        settle,
        stays: changes.stays,
        isCareful,
        loops
      })
      const { handlerGraceMs } = options
      const noteTurn = Notes.make({ state, attempts, store, suspects, settle, handlerGraceMs, loops })
      yield* Effect.forEach(
        [
          reading.intakeTurn(owner),
          ...(queue.isOrdered ? [reading.headsTurn(owner)] : []),
          dispatchTurn,
          timers.turn(owner),
          timers.sweep,
          noteTurn,
          checkTurn(owner)
        ],
        (turn) => Effect.forkIn(forEver(turn), loops),
        { discard: true }
      )
      yield* moves.taken(member)
      yield* Effect.logDebug("Partition taken over").pipe(Effect.annotateLogs({ epoch: owner.epoch, isCareful }))
    })

    const member: Member = { entity: position.entity, running: () => state.owned?.attempts.underWay() ?? 0 }

    /** When the process leaves, that is told of once for all partitions. */
    const tellOfWaiting = (most: string, count: number) =>
      moves.isLeaving() ? Effect.void : told(Effect.logInfo(
        `${position.entity} moves to another runner: waiting up to ${most} for ${count} running job${
          count === 1 ? "" : "s"
        }`
      ))

    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        state.isStopping = true
        // What waits here holds back nobody. What runs still counts, until it has ended.
        state.owned?.suspects.withdraw(() => true)
        yield* Scope.close(loops, Exit.void)
        let overAt = monotonicMillis()
        if (state.owned !== undefined) {
          const { attempts, owner } = state.owned
          // Once the grace is over, what the store does not answer is left to the successor: a database that is away holds up nothing.
          const wasHeld = lock.isHeld()
          const running = attempts.underWay()
          let interrupted = 0
          const giveUp = Effect.sync(() => {
            isStopped = true
            interrupted = attempts.underWay()
          })
          overAt = yield* end({ attempts, choose: () => true, onGraceOver: giveUp, tell: tellOfWaiting })
          // A server that restarts meanwhile must not make a crash of it.
          const handOver = Effect.retry(store.handOver(owner), {
            while: ({ reason }) => reason === "Unavailable",
            schedule: Schedule.spaced("200 millis")
          })
          const leftMs = Math.max(overAt - monotonicMillis(), 0)
          const handedOver = Effect.andThen(Effect.andThen(attempts.note(true), attempts.forget), handOver).pipe(
            Effect.timeoutOption(Duration.millis(leftMs)),
            Effect.interruptible,
            onLiveClock,
            Effect.catch((error) =>
              told(Effect.logWarning(
                `Could not hand over ${position.entity}: its next owner takes it over as after a crash`,
                unanswered(error) ?? error
              ))
            )
          )
          yield* atMost(leftMs + 100, handedOver)
          if (wasHeld) yield* moves.left(member, { ended: running - interrupted, interrupted })
          else moves.lost(member)
        }
        isStopped = true
        yield* atMost(Math.max(overAt - monotonicMillis(), 200), Scope.close(attemptsScope, Exit.void))
      }).pipe(Effect.ensuring(Effect.sync(() => state.owned?.suspects.leave())))
    )
    // The message that activated the entity has references of its sender's: none of them may reach the loops and the attempts.
    yield* Effect.forEach(
      [owning, stopWhenLost],
      (loop) =>
        loop.pipe(
          Effect.annotateLogs({ queue: queue.name, partition }),
          Effect.setContext(services),
          Effect.forkIn(loops)
        ),
      { discard: true }
    )

    const tell = Listener.make(state)

    return {
      wake: (ready) =>
        Effect.sync(() => {
          tell(ready)
          // Something may have been missed: whoever wakes says so at least.
          state.intakeDue.openUnsafe()
        }),
      tell,
      cancel: Canceller.make({ state, store, queue, announcer, cancels, intakeLock, settle }),
      view: (id) => {
        const run = state.owned?.attempts.get(id)
        if (run === undefined) {
          return held.has(id)
            ? { isRunning: false, startedAt: undefined, progress: undefined, message: undefined }
            : undefined
        }
        return { isRunning: true, startedAt: run.startedAt, progress: run.progress, message: run.message }
      },
      snapshot: () => ({ lanes: mailbox.depth(), running: state.owned?.attempts.running() ?? [] })
    }
  })
