/**
 * The owner of one partition: takes over, reads ready rows into the mailbox, starts attempts, keeps the timers, hands over.
 *
 * Promise: one intake at a time, a job leaves "held" only when its outcome is confirmed. A crash leaves nothing to undo.
 */
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { EventBus } from "../EventBus.ts"
import type * as Execution from "../Execution.ts"
import type { JobHandlers } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import * as JobMetrics from "../JobMetrics.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, Owner, Ready, ReadyJob, Settlement, StoreError } from "../JobStore.ts"
import * as Mailbox from "../Mailbox.ts"
import * as Priority from "../Priority.ts"
import type * as RequestContext from "../RequestContext.ts"
import * as Announcer from "./announcer.ts"
import * as Attempts from "./attempts.ts"
import * as Crashes from "./crashes.ts"
import * as Grace from "./grace.ts"
import * as Held from "./held.ts"
import * as Parking from "./parking.ts"
import * as Settler from "./settler.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"
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
  /** Services for attempts and timers, among them the runtime's Clock. */
  readonly services: Context.Context<never>
  /** How long running attempts may go on at shutdown. */
  readonly graceMs: number
  /** How long a job waits for a handler of its type. */
  readonly handlerGraceMs: number
  /** Ends when this process can no longer be sure that it owns the partition. */
  readonly lockLost: Effect.Effect<void>
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
  /** Cancels a ready or running job. `false`: it is neither, or has just ended. */
  readonly cancel: (id: JobId, by: string | undefined) => Effect.Effect<boolean>
  readonly view: (id: JobId) => View | undefined
  /** What is held in memory: waiting by lane and tenant, and running. */
  readonly snapshot: () => { readonly lanes: ReadonlyArray<Mailbox.LaneDepth>; readonly running: ReadonlyArray<JobId> }
}

const crashLimit = 5
const carefulMs = 60_000
const sweepMs = 5_000
const sweepMaxMs = 30_000
const noteMs = 250
const dispatchAtOnce = 64
/** Room of each lane for tenants that come while another's flood fills it. */
const reserve = 64
/** How long a job that may kill its process holds back others: before its start, and after it. */
const suspectPatienceMs = 30_000

/** Owns the partition until the scope closes. Returns at once; the take-over is tried until the store answers. */
export const make = (options: Options): Effect.Effect<Partition, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { bus, handlers, partition, position, queue, queueId, services, store } = options
    const loops = yield* Scope.make()
    const attemptsScope = yield* Scope.make()
    const capacity = Math.min(Math.max(queue.concurrency * 4, 512), 2_000)
    const mailbox = Mailbox.make<ReadyJob & Mailbox.Item>({
      weights: queue.weights,
      capacityPerLane: capacity + reserve
    })
    const held = Held.make(Priority.lanes.length)
    const parking = Parking.make()
    const end = Grace.make({ queue: queue.name, graceMs: options.graceMs, lockLost: options.lockLost })
    const announcer = Announcer.make(bus, queue.name, services)
    const intakeLock = yield* Semaphore.make(1)
    const intakeDue = yield* Latch.make(true)
    const dispatchDue = yield* Latch.make(true)
    const timerDue = yield* Latch.make(true)
    const state = {
      isStopping: false,
      isStopped: false,
      carefulUntil: 0,
      troubledAt: 0,
      leaving: 0,
      sweepMs,
      blocked: new Set<JobId>()
    }
    let owned:
      | { readonly owner: Owner; readonly attempts: Attempts.Attempts; readonly settler: Settler.Settler }
      | undefined
    // A job that was running when its process died, twice or more: it waits to run alone, for its neighbours shall not be blamed.
    let suspect: { readonly job: ReadyJob; readonly since: number } | undefined
    let aloneUntil = 0
    // Types whose handlers are going: mostly the whole process is, and then its waiting jobs need no write at all.
    const leaving = new Set<string>()

    const runningIds = (): ReadonlyArray<JobId> => owned?.attempts.ids() ?? []

    const release = (job: ReadyJob, isReady: boolean) => {
      held.release(job, isReady)
      if (isReady) intakeDue.openUnsafe()
    }

    const offer = (job: ReadyJob) => {
      if (mailbox.offer({ ...job, tenantId: job.tenant }) === "full") release(job, true)
    }

    /** A database that is away is told of once in a while, not at every try. */
    const troubled = (what: string, error: StoreError) =>
      Effect.suspend(() => {
        const now = liveClock.currentTimeMillisUnsafe()
        if (now - state.troubledAt < 30_000) return Effect.void
        state.troubledAt = now
        return Effect.logWarning(`${what}: trying again until the database answers (${error.message})`)
      })

    // ---------------------------------------------------------------------------------------------- intake

    // Jobs that neither wait nor run (parked, or being settled) are in memory too: a flood of them stops the intake for a moment.
    const isCrowded = () => held.size - mailbox.size - (owned?.attempts.size() ?? 0) > capacity

    const rooms = () =>
      Priority.lanes.map(({ index }) =>
        isCrowded() || mailbox.sizeOf(index) * 2 > capacity ? 0 : mailbox.room(index) - reserve
      )
    const reserves = () => Priority.lanes.map(({ index }) => isCrowded() ? 0 : mailbox.room(index))

    const intake = (owner: Owner) =>
      intakeLock.withPermit(Effect.gen(function*() {
        const demand = held.demand(rooms(), reserves())
        if (demand === undefined) return false
        const answer = yield* store.intake(owner, demand)
        for (const job of held.took(demand, answer)) if (!state.blocked.has(job.id)) offer(job)
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

    // ---------------------------------------------------------------------------------------------- dispatch

    const settle = (job: ReadyJob, settlement: Settlement) =>
      Effect.suspend(() => {
        if (owned === undefined) return Effect.succeed(false)
        return Effect.flatMap(owned.settler.settle(settlement), (answer) =>
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
        if (suspect?.job.id === job.id) suspect = undefined
        parking.park(job)
        return undefined
      }
      const live = liveClock.currentTimeMillisUnsafe()
      if (job.crashes >= 2) {
        const since = suspect?.job.id === job.id ? suspect.since : live
        suspect = { job, since }
        if (attempts.size() > 0 && live - since < suspectPatienceMs) return undefined
        suspect = undefined
        aloneUntil = live + suspectPatienceMs
      }
      const isCareful = job.crashes > 0 || live < state.carefulUntil
      attempts.start(job, handler, now, isCareful)
      return undefined
    }

    const stays = (job: ReadyJob): boolean => leaving.size === 0 || !leaving.has(job.type)

    const next = (attempts: Attempts.Attempts): ReadyJob | undefined => {
      if (state.isStopping || !attempts.hasPlace()) return undefined
      const live = liveClock.currentTimeMillisUnsafe()
      if (attempts.size() > 0 && live < aloneUntil) return undefined
      if (suspect === undefined) return mailbox.take(stays)
      return attempts.size() === 0 || live - suspect.since >= suspectPatienceMs ? suspect.job : undefined
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

    // ---------------------------------------------------------------------------------------------- timers

    /** The clock is read by the very fiber that then sleeps: it may jump in between otherwise, and the job would be late. */
    const sleepUntil = (time: number) =>
      Effect.flatMap(store.now, (now) => Effect.sleep(Duration.millis(Math.max(time - now, 0))))

    const timerTurn = (owner: Owner) =>
      Effect.gen(function*() {
        timerDue.closeUnsafe()
        const due = yield* store.nextDue(owner)
        if (Option.isNone(due)) return yield* timerDue.await
        const now = yield* store.now
        if (due.value > now) return yield* Effect.raceFirst(sleepUntil(due.value), timerDue.await)
        const promoted = yield* store.promote(owner, now, 500)
        // What is due is locked by someone, or not ours any more.
        if (promoted.length === 0) yield* onLiveClock(Effect.sleep("250 millis"))
        for (const ready of promoted) held.told(ready)
        timerDue.openUnsafe()
        intakeDue.openUnsafe()
      }).pipe(
        Effect.catch((error) =>
          Effect.andThen(troubled("Could not read due jobs", error), onLiveClock(Effect.sleep(500)))
        )
      )

    const sweepTurn = Effect.gen(function*() {
      const jitter = yield* Random.next
      yield* onLiveClock(Effect.sleep(Duration.millis(state.sweepMs * (0.8 + 0.4 * jitter))))
      state.sweepMs = held.size === 0 ? Math.min(state.sweepMs * 1.5, sweepMaxMs) : sweepMs
      held.sweep()
      intakeDue.openUnsafe()
      timerDue.openUnsafe()
      yield* measure
    })

    const measure = store.depth({ queueId, partition }, 10_000).pipe(
      Effect.flatMap((depths) =>
        Effect.forEach(
          Priority.lanes,
          ({ index, name }) => JobMetrics.setDepth(queue.name, partition, name, depths[index] ?? 0),
          { discard: true }
        )
      ),
      Effect.ignore
    )

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
        if (suspect !== undefined || aloneUntil > 0) dispatchDue.openUnsafe()
      })

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

    const own = Effect.gen(function*() {
      const { isCareful, owner } = yield* Effect.flatMap(
        store.now,
        (now) => untilAvailable(store.takeOver({ queueId, partition }, { owner: position.runner, now }), "Taking over")
      )
      if (isCareful) {
        state.carefulUntil = liveClock.currentTimeMillisUnsafe() + carefulMs
        yield* Crashes.count({
          store,
          owner,
          blocked: state.blocked,
          running: runningIds,
          onUnblocked: (id) => {
            const job = held.get(id)
            if (job !== undefined) release(job, true)
          },
          scope: loops
        })
      }
      const environment: Execution.Environment = { store, owner, queue, position, services }
      const settler = yield* Settler.make({ store, owner, isStopped: () => state.isStopped }).pipe(
        Scope.provide(attemptsScope)
      )
      const attempts = yield* Attempts.make({
        environment,
        settler,
        announcer,
        release,
        onDue: () => void timerDue.openUnsafe(),
        onEnded: () => void dispatchDue.openUnsafe(),
        isStopped: () => state.isStopped
      }).pipe(Scope.provide(attemptsScope))
      owned = { owner, attempts, settler }
      yield* handlers.observe({
        added: (type) => {
          for (const job of parking.unpark(type)) offer(job)
          dispatchDue.openUnsafe()
        },
        removed: (type) =>
          Effect.suspend(() => {
            leaving.add(type)
            state.leaving++
            return Effect.ensuring(
              end(attempts, (run) => run.job.type === type),
              Effect.suspend(() => {
                state.leaving--
                return Effect.forkIn(stay, loops)
              })
            )
          })
      }).pipe(Scope.provide(loops))
      yield* Effect.forEach(
        [intakeTurn(owner), dispatchTurn(attempts), timerTurn(owner), sweepTurn, noteTurn(attempts)],
        (turn) => Effect.forkIn(forEver(turn), loops),
        { discard: true }
      )
      yield* Effect.logDebug("Partition taken over").pipe(Effect.annotateLogs({ epoch: owner.epoch, isCareful }))
    })

    /** The process goes on after all: jobs of the types that went are taken again, and put back. */
    const stay = Effect.gen(function*() {
      yield* onLiveClock(Effect.sleep(Duration.millis(Grace.togetherMs)))
      if (state.leaving > 0) return
      leaving.clear()
      dispatchDue.openUnsafe()
    })

    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        state.isStopping = true
        yield* Scope.close(loops, Exit.void)
        if (owned !== undefined) {
          const { attempts, owner } = owned
          // Once the grace is over, what the store does not answer is left to the successor: a database that is away holds up nothing.
          const giveUp = Effect.sync(() => {
            state.isStopped = true
          })
          yield* end(attempts, () => true, giveUp)
          yield* Effect.andThen(attempts.note, store.handOver(owner)).pipe(
            Effect.timeoutOption("5 seconds"),
            Effect.interruptible,
            onLiveClock,
            Effect.catch((error) => Effect.logWarning("Could not hand over", error))
          )
        }
        state.isStopped = true
        yield* Scope.close(attemptsScope, Exit.void)
      })
    )
    // The message that activated the entity has references of its sender's: none of them may reach the loops and the attempts.
    yield* own.pipe(
      Effect.annotateLogs({ queue: queue.name, partition }),
      Effect.setContext(services),
      Effect.forkIn(loops)
    )

    const cancelWaiting = (job: ReadyJob, by: string | undefined) =>
      Effect.flatMap(store.now, (now) => settle(job, Verdict.cancelled(job, now, queue.retention, by)))

    /** Not held: it may be read at any moment, so this takes the place of an intake. */
    const cancelUnread = (owner: Owner, id: JobId, by: string | undefined) =>
      Effect.gen(function*() {
        const found = yield* store.find(id)
        if (Option.isNone(found) || found.value.state !== "queued") return false
        const { attempt, context, crashes, createdAt, lane, payload, tenant, type, version } = found.value
        const now = yield* store.now
        const job: ReadyJob = {
          id,
          lane: lane ?? 0,
          tenant,
          seq: 0,
          version,
          type,
          attempt,
          crashes,
          createdAt,
          expiresAt: undefined,
          isLarge: false,
          payload,
          context
        }
        const settlement = Verdict.cancelled(job, now, queue.retention, by)
        const { entry, purgeAt } = settlement
        for (const { lane, seq } of yield* store.reread([id])) held.passed(lane, seq)
        if (!(yield* store.cancel({ id, version, owner, now, purgeAt, entry }))) return false
        yield* announcer.settled(job, settlement, now) ?? Effect.void
        return true
      }).pipe(Effect.catch(() => Effect.succeed(false)))

    /** Takes a job out of where it waits in memory. */
    const withdraw = (id: JobId): ReadyJob | undefined => {
      const waiting = mailbox.remove(id) ?? parking.remove(id)
      if (waiting !== undefined || suspect?.job.id !== id) return waiting
      const { job } = suspect
      suspect = undefined
      dispatchDue.openUnsafe()
      return job
    }

    const cancel = (id: JobId, by: string | undefined): Effect.Effect<boolean> =>
      Effect.suspend(() => {
        if (owned === undefined) return Effect.succeed(false)
        const { attempts, owner } = owned
        const run = attempts.get(id)
        if (run !== undefined) return attempts.cancel(run, by)
        const waiting = withdraw(id)
        if (waiting !== undefined) return cancelWaiting(waiting, by)
        return intakeLock.withPermit(
          Effect.suspend(() => held.has(id) ? Effect.succeed(false) : cancelUnread(owner, id, by))
        )
      })

    /** Takes a job from its submitter's hand, where that passes nothing that waits in the table. */
    const isTaken = ({ job, lane }: Ready): boolean => {
      if (job === undefined || owned === undefined || state.isStopping || !held.isRead(lane)) return false
      if (isCrowded() || mailbox.room(lane) <= reserve) return false
      const ready = job()
      if (!held.given(ready)) return false
      offer(ready)
      return true
    }

    const tell = (ready: ReadonlyArray<Ready>): void => {
      for (const row of ready) {
        if (row.dueAt !== undefined) timerDue.openUnsafe()
        else if (isTaken(row)) dispatchDue.openUnsafe()
        else {
          held.told(row)
          intakeDue.openUnsafe()
        }
      }
    }

    return {
      wake: (ready) =>
        Effect.sync(() => {
          tell(ready)
          // Something may have been missed: whoever wakes says so at least.
          intakeDue.openUnsafe()
        }),
      tell,
      cancel,
      view: (id) => {
        const run = owned?.attempts.get(id)
        if (run === undefined) {
          return held.has(id)
            ? { isRunning: false, startedAt: undefined, progress: undefined, message: undefined }
            : undefined
        }
        return { isRunning: true, startedAt: run.startedAt, progress: run.progress, message: run.message }
      },
      snapshot: () => ({ lanes: mailbox.depth(), running: owned?.attempts.running() ?? [] })
    }
  })
