/**
 * The owner of one partition: takes over, reads ready rows into the mailbox, starts attempts, hands over.
 *
 * Promise: one intake at a time, a job leaves "held" only when its outcome is confirmed. A crash leaves nothing to undo.
 */
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { EventBus } from "../EventBus.ts"
import type * as Execution from "../Execution.ts"
import type { JobHandlers } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import * as JobMetrics from "../JobMetrics.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, Owner, Ready, ReadyJob, Settlement, StoreError } from "../JobStore.ts"
import type * as Mailbox from "../Mailbox.ts"
import type * as RequestContext from "../RequestContext.ts"
import * as Announcer from "./announcer.ts"
import * as Attempts from "./attempts.ts"
import * as Canceller from "./canceller.ts"
import * as Crashes from "./crashes.ts"
import * as Grace from "./grace.ts"
import * as Listener from "./listener.ts"
import * as PartitionState from "./partitionState.ts"
import * as Settler from "./settler.ts"
import type { Lock } from "./supervisor.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"
import * as Timers from "./timers.ts"
import { untilAvailable } from "./untilAvailable.ts"
import * as Verdict from "./verdict.ts"

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
  /** How long a job waits for a handler of its type. */
  readonly handlerGraceMs: number
  /** Says whether this process can be sure that it owns the partition. */
  readonly lock: Lock
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

const crashLimit = 5
const carefulMs = 60_000
const noteMs = 250
/** How often an owner makes sure that it is one. */
const checkSeconds = 5
const dispatchAtOnce = 64
/** How long a job that may kill its process holds back others: before its start, and after it. */
const suspectPatienceMs = 30_000

/** Owns the partition until the scope closes. Returns at once; the take-over is tried until the store answers. */
export const make = (options: Options): Effect.Effect<Partition, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { bus, handlers, lock, partition, position, queue, queueId, services, store } = options
    const loops = yield* Scope.make()
    const attemptsScope = yield* Scope.make()
    const state = yield* PartitionState.make(queue)
    const { dispatchDue, held, intakeDue, keys, keysDue, mailbox, offer, parking, release, timerDue } = state
    const end = Grace.make({ queue: queue.name, graceMs: options.graceMs, lockLost: lock.lost })
    const announcer = Announcer.make(bus, queue.name, services)
    const intakeLock = yield* Semaphore.make(1)
    const blocked = new Set<JobId>()
    let isStopped = false
    let carefulUntil = 0
    let troubledAt = 0
    let aloneUntil = 0
    // Types whose handlers are going: mostly the whole process is, and then its waiting jobs need no write at all.
    const leaving = new Set<string>()
    let leavingNow = 0

    const runningIds = (): ReadonlyArray<JobId> => state.owned?.attempts.ids() ?? []

    /** A database that is away is told of once in a while, not at every try. */
    const troubled = (what: string, error: StoreError) =>
      Effect.suspend(() => {
        const now = liveClock.currentTimeMillisUnsafe()
        if (now - troubledAt < 30_000) return Effect.void
        troubledAt = now
        return Effect.logWarning(`${what}: trying again until the database answers (${error.message})`)
      })

    // ---------------------------------------------------------------------------------------------- intake

    const intake = (owner: Owner) =>
      intakeLock.withPermit(Effect.gen(function*() {
        const demand = held.demand(state.rooms(), state.reserves())
        if (demand === undefined) return false
        const answer = yield* store.intake(owner, queue.isOrdered ? { ...demand, isOrdered: true } : demand)
        for (const job of held.took(demand, answer, (job) => keys.admit(job))) if (!blocked.has(job.id)) offer(job)
        dispatchDue.openUnsafe()
        return true
      }))

    const intakeTurn = (owner: Owner) =>
      Effect.gen(function*() {
        yield* intakeDue.await
        intakeDue.closeUnsafe()
        while (yield* intake(owner)) { /* until nothing is worth asking */ }
      }).pipe(
        Effect.catch((error) =>
          Effect.andThen(
            troubled("Could not read ready jobs", error),
            onLiveClock(Effect.sleep(Duration.millis(500)))
          ).pipe(Effect.andThen(intakeDue.open))
        )
      )

    /** In place of an intake, so that neither sees half of what the other does. Answers whether there may be more. */
    const readHeads = (owner: Owner) =>
      intakeLock.withPermit(Effect.gen(function*() {
        const lines = keys.due()
        if (lines.length === 0) return false
        const { elsewhere, jobs } = yield* Effect.tapError(
          store.heads(owner, lines),
          () => Effect.sync(() => lines.forEach(keys.look))
        )
        if (elsewhere.length > 0) yield* store.announce(elsewhere)
        for (const job of jobs) {
          // Being found out about, or read already: its end leads here again.
          if (blocked.has(job.id) || held.has(job.id) || !keys.admit(job, true)) continue
          held.admit(job)
          offer(job)
        }
        dispatchDue.openUnsafe()
        return true
      }))

    /** The next of each key whose job has ended. */
    const headsTurn = (owner: Owner) =>
      Effect.gen(function*() {
        yield* keysDue.await
        keysDue.closeUnsafe()
        while (yield* readHeads(owner)) { /* until no line is due */ }
      }).pipe(
        Effect.catch((error) =>
          Effect.andThen(
            troubled("Could not read the heads of lines", error),
            onLiveClock(Effect.sleep(Duration.millis(500)))
          ).pipe(Effect.andThen(keysDue.open))
        )
      )

    // ---------------------------------------------------------------------------------------------- dispatch

    const settle = (job: ReadyJob, settlement: Settlement) =>
      Effect.suspend(() => {
        if (state.owned === undefined) return Effect.succeed(false)
        return Effect.flatMap(state.owned.settler.settle(settlement), (answer) =>
          Effect.gen(function*() {
            // Whatever moved the row: reading it again shows what is left of it.
            if (typeof answer === "string") {
              release(job, answer === "superseded")
              return false
            }
            release(job, false)
            intakeDue.openUnsafe()
            if (answer._tag === "PutBack") timerDue.openUnsafe()
            yield* announcer.settled(job, answer, yield* store.now) ?? Effect.void
            return answer === settlement
          }))
      })

    const withoutHandler = (job: ReadyJob, now: number) =>
      Verdict.withoutHandler(job, now, parking.missingFor(job.type), options.handlerGraceMs)

    /** Starts the job, or does what it needs instead: then there is something left to do. */
    const begin = (job: ReadyJob, attempts: Attempts.Attempts, now: number): Effect.Effect<unknown> | undefined => {
      if (job.crashes >= crashLimit) return Effect.forkIn(settle(job, Verdict.crashLoop(job, now)), loops)
      if (job.attempt === 0 && job.crashes === 0 && job.expiresAt !== undefined && job.expiresAt <= now) {
        return Effect.forkIn(settle(job, Verdict.expired(job, now, queue.retention)), loops)
      }
      const handler = handlers.get(job.type)
      if (handler === undefined) {
        if (state.suspect?.job.id === job.id) state.suspect = undefined
        parking.park(job)
        return undefined
      }
      const live = liveClock.currentTimeMillisUnsafe()
      if (job.crashes >= 2) {
        const since = state.suspect?.job.id === job.id ? state.suspect.since : live
        state.suspect = { job, since }
        if (attempts.size() > 0 && live - since < suspectPatienceMs) return undefined
        state.suspect = undefined
        aloneUntil = live + suspectPatienceMs
      }
      const isCareful = job.crashes > 0 || live < carefulUntil
      attempts.start(job, handler, now, isCareful)
      return undefined
    }

    const stays = (job: ReadyJob): boolean => leaving.size === 0 || !leaving.has(job.type)

    /** Every job comes this way, also one taken from its submitter's hand: after a pause of the process nothing starts. */
    const next = (attempts: Attempts.Attempts): ReadyJob | undefined => {
      if (state.isStopping || !attempts.hasPlace() || !lock.isHeld()) return undefined
      const live = liveClock.currentTimeMillisUnsafe()
      if (attempts.size() > 0 && live < aloneUntil) return undefined
      if (state.suspect === undefined) return mailbox.take(stays)
      return attempts.size() === 0 || live - state.suspect.since >= suspectPatienceMs ? state.suspect.job : undefined
    }

    /** At most so many: what they have to write leaves for the database while the next ones run. Answers whether there may be more. */
    const dispatch = (attempts: Attempts.Attempts, now: number) =>
      Effect.suspend(() => {
        const others: Array<Effect.Effect<unknown>> = []
        let job: ReadyJob | undefined
        const started = Effect.suspend(() => {
          for (let count = 0; count < dispatchAtOnce; count++) {
            job = next(attempts)
            if (job === undefined) break
            const other = begin(job, attempts, now)
            if (other !== undefined) others.push(other)
          }
          const isMore = job !== undefined
          // Begun: from here on it is not this turn's to give back.
          job = undefined
          return Effect.as(Effect.all(others, { discard: true }), isMore)
        })
        // A defect here must not keep the job from ever being read again.
        return Effect.onError(started, () => Effect.sync(() => job === undefined ? undefined : release(job, true)))
      })

    const dispatchTurn = (attempts: Attempts.Attempts) =>
      Effect.gen(function*() {
        yield* dispatchDue.await
        dispatchDue.closeUnsafe()
        while (yield* dispatch(attempts, yield* store.now)) yield* Effect.yieldNow
        intakeDue.openUnsafe()
        yield* JobMetrics.setInFlight(queue.name, partition, attempts.underWay())
      })

    // ---------------------------------------------------------------------------------------------- notes

    const tellOfMissing = (type: string) =>
      Effect.logWarning(
        `No handler for jobs of type "${type}" in this process: they wait for one for ${
          Duration.format(Duration.millis(options.handlerGraceMs))
        }, then become dead letters`
      )

    const noteTurn = (attempts: Attempts.Attempts) =>
      Effect.gen(function*() {
        yield* onLiveClock(Effect.sleep(Duration.millis(noteMs)))
        yield* attempts.note
        const now = yield* store.now
        for (const job of parking.overdue()) {
          // Not sooner: handlers may be registered a moment after the runtime has started.
          if (parking.isNews(job.type)) yield* tellOfMissing(job.type)
          yield* Effect.forkIn(settle(job, withoutHandler(job, now)), loops)
        }
        if (state.suspect !== undefined || aloneUntil > 0) dispatchDue.openUnsafe()
      })

    const timers = Timers.make({ state, store, queue, queueId, partition, troubled })

    /** A defect of ours must not stop a queue: it is logged, and the next turn goes on. */
    const forEver = <A>(turn: Effect.Effect<A>) =>
      turn.pipe(
        Effect.catchDefect((defect) =>
          Effect.andThen(
            Effect.logError("A turn of the queue's owner died", defect),
            onLiveClock(Effect.sleep("1 second"))
          )
        ),
        Effect.forever
      )

    // ---------------------------------------------------------------------------------------------- ownership

    /** Somebody else may own the partition from now on: nothing more starts here, and what runs cannot commit. It ends at once. */
    const stopWhenLost = Effect.gen(function*() {
      yield* lock.lost
      const attempts = state.owned?.attempts
      if (attempts === undefined || attempts.size() === 0) return
      yield* Effect.logWarning(
        `The lock of ${position.entity} is lost: ${attempts.size()} jobs under way are interrupted, and run again where it is owned next`
      )
      yield* attempts.stop(() => true)
    })

    /**
     * Somebody's late take-over may have ended this ownership, though the lock is here: a process that was frozen between its look at the
     * lock and the statement. Nothing could run here any more, so the partition is taken over again.
     */
    const checkTurn = (owner: Owner) =>
      Effect.gen(function*() {
        yield* onLiveClock(Effect.sleep(Duration.seconds(checkSeconds)))
        if (yield* Effect.orElseSucceed(store.isOwner(owner), () => true)) return
        yield* Effect.logWarning(
          `${position.entity} was taken over by another process that had lost its lock: taking over again`
        )
        lock.giveUp()
        return yield* Effect.never
      })

    const own = Effect.gen(function*() {
      const takeOver = Effect.flatMap(
        store.now,
        (now) =>
          // Too late, a take-over would end the ownership of whoever has the lock by now.
          lock.isHeld()
            ? store.takeOver({ queueId, partition }, { owner: `${position.runner}#${options.incarnation}`, now })
            : Effect.never
      )
      const { isCareful, owner } = yield* untilAvailable(takeOver, "Taking over")
      if (isCareful) {
        carefulUntil = liveClock.currentTimeMillisUnsafe() + carefulMs
        yield* Crashes.count({
          store,
          owner,
          blocked,
          running: runningIds,
          onUnblocked: (id) => {
            const job = held.get(id)
            if (job !== undefined) release(job, true)
          },
          scope: loops
        })
      }
      const environment: Execution.Environment = { store, owner, queue, position, services }
      const settler = yield* Settler.make({ store, owner, isStopped: () => isStopped }).pipe(
        Scope.provide(attemptsScope)
      )
      const attempts = yield* Attempts.make({
        environment,
        settler,
        announcer,
        release,
        onDue: () => void timerDue.openUnsafe(),
        onEnded: () => void dispatchDue.openUnsafe(),
        isStopped: () => isStopped
      }).pipe(Scope.provide(attemptsScope))
      state.owned = { owner, attempts, settler }
      yield* handlers.observe({
        added: (type) => {
          for (const job of parking.unpark(type)) offer(job)
          dispatchDue.openUnsafe()
        },
        removed: (type) =>
          Effect.suspend(() => {
            leaving.add(type)
            leavingNow++
            return Effect.ensuring(
              end(attempts, (run) => run.job.type === type),
              Effect.suspend(() => {
                leavingNow--
                return Effect.forkIn(stay, loops)
              })
            )
          })
      }).pipe(Scope.provide(loops))
      yield* Effect.forEach(
        [
          intakeTurn(owner),
          ...(queue.isOrdered ? [headsTurn(owner)] : []),
          dispatchTurn(attempts),
          timers.turn(owner),
          timers.sweep,
          noteTurn(attempts),
          checkTurn(owner)
        ],
        (turn) => Effect.forkIn(forEver(turn), loops),
        { discard: true }
      )
      yield* Effect.logDebug("Partition taken over").pipe(Effect.annotateLogs({ epoch: owner.epoch, isCareful }))
    })

    /** The process goes on after all: jobs of the types that went are taken again, and put back. */
    const stay = Effect.gen(function*() {
      yield* onLiveClock(Effect.sleep(Duration.millis(Grace.togetherMs)))
      if (leavingNow > 0) return
      leaving.clear()
      dispatchDue.openUnsafe()
    })

    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        state.isStopping = true
        yield* Scope.close(loops, Exit.void)
        if (state.owned !== undefined) {
          const { attempts, owner } = state.owned
          // Once the grace is over, what the store does not answer is left to the successor: a database that is away holds up nothing.
          const giveUp = Effect.sync(() => {
            isStopped = true
          })
          yield* end(attempts, () => true, giveUp)
          yield* Effect.andThen(attempts.note, store.handOver(owner)).pipe(
            Effect.timeoutOption("5 seconds"),
            Effect.interruptible,
            onLiveClock,
            Effect.catch((error) => Effect.logWarning("Could not hand over", error))
          )
        }
        isStopped = true
        yield* Scope.close(attemptsScope, Exit.void)
      })
    )
    // The message that activated the entity has references of its sender's: none of them may reach the loops and the attempts.
    yield* Effect.forEach(
      [own, stopWhenLost],
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
          intakeDue.openUnsafe()
        }),
      tell,
      cancel: Canceller.make({ state, store, queue, announcer, intakeLock, settle }),
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
